"""The grammar of `params`, and so of `target=`: which text names which image, and how it may be used. Pure.

    PATH, raw:PATH, aio:PATH        a raw file or block device; "aio" is libxl's word for raw
    NAME, raw:NAME, aio:NAME        a device below /dev: loop0, mapper/vg-disk
    FORMAT:PATH                     a file or device in one of QEMU's formats, or packed
    http://HOST/PATH, https://...   a raw image on a web server
    nbdkit:[--filter=NAME ...] PLUGIN [KEY=VALUE ...]
    nbd://HOST[:PORT][/EXPORT], nbd+unix:///[EXPORT]?socket=PATH, nbd:unix:PATH[:exportname=EXPORT]

A PATH begins with a slash and may hold anything behind it; a NAME holds no colon. The format is always stated, never
guessed from an image's contents (XSA-258).

hotplug/block-xenbusd reads the same language in shell, because a Python interpreter takes longer to start than the
whole script: tests/doubles/targets.py is a table that the tests run through both.

Decisions: D26, D49.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from xenbusd.api import ResourceError
from xenbusd_vbd.nbd.address import Address, parse_address
from xenbusd_vbd.nbd.errors import NbdError

RAW = "raw"

QEMU = {
    "qcow2": "qcow2",
    "qcow": "qcow",
    "qed": "qed",
    "vhd": "vpc",
    "vpc": "vpc",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "vdi": "vdi",
}
"""QEMU's formats: as `params` spells them -> as QEMU does."""

PACKED = {"xz": "xz", "gz": "gzip"}
"""Compressed raw images, read-only -> nbdkit's filter."""

WEB = ("http", "https")
"""Raw images on a web server, read-only, by nbdkit's curl plugin."""

NETWORK = ("nbd", "nbd+unix")
"""An NBD server that runs already: nothing is started."""

PLUGINS = frozenset(
    {"curl", "data", "file", "floppy", "iso", "memory", "nbd", "null", "partitioning", "pattern", "split", "ssh"}
)
FILTERS = frozenset(
    {"blocksize", "cache", "cow", "ext2", "gzip", "luks", "offset", "partition", "rate", "readahead", "retry", "tar"}
    | {"truncate", "xz"}
)
"""The plugins and filters that `nbdkit:` may name: none that run programs, write logs or exist to test clients."""

_FORMAT = re.compile(r"([a-z][a-z0-9+]*):(.*)", re.ASCII | re.DOTALL)


class Params(NamedTuple):
    """One `params` value, taken apart."""

    format: str
    """RAW, or one of `formats()`."""
    target: str
    """With a local image its absolute path; otherwise what stands behind the format and its colon."""

    def __str__(self) -> str:
        return f"{self.format}:{self.target}"

    @property
    def path(self) -> str | None:
        """The absolute path of the file or block device; None for an image on the network, or made by nbdkit."""
        return self.target if self.format == RAW or has_file(self.format) else None


class Mode(NamedTuple):
    """One `mode` value, taken apart."""

    writable: bool
    shared: bool
    """With "!": other programs may use the image at the same time, and it is not locked."""


MODES = {"w": Mode(True, False), "r": Mode(False, False), "w!": Mode(True, True), "r!": Mode(False, True)}
"""What `mode` may say."""


def formats() -> tuple[str, ...]:
    """All formats that are served, as `params` spells them, besides raw."""
    return (*QEMU, *PACKED, *WEB, "nbdkit", *NETWORK)


def has_file(format: str) -> bool:
    """Whether an image of this format, other than raw, is a file or block device of this host."""
    return format in QEMU or format in PACKED


def parse(text: str) -> Params:
    """Take a `params` value apart.

    Raises:
        ResourceError: it is not of this language; the sentence says what to write instead.
    """
    found = None if text.startswith("/") else _FORMAT.fullmatch(text)
    format, target = found.groups() if found else (RAW, text)
    params = Params(RAW, _raw_path(text, target)) if format in (RAW, "aio") else Params(format, target)
    if "\0" in text:
        raise ResourceError("params: there is a NUL in it", errno.EINVAL)
    if params.format == RAW:
        return params
    if format not in formats():
        raise ResourceError(f"format {format!r} is not served; write raw, {', '.join(formats())}", errno.EINVAL)
    if has_file(format) and not target.startswith("/"):
        raise ResourceError(f"{text}: write an absolute path, as in {format}:/srv/disk.img", errno.EINVAL)
    if format in WEB and not re.fullmatch(r"//[^\s/]+/\S+", target):
        raise ResourceError(f"{text}: write an address, as in {format}://host/disk.img", errno.EINVAL)
    if format in NETWORK:
        nbd_address(params)
    if format == "nbdkit":
        nbdkit_words(params)
    return params


def parse_mode(text: str) -> Mode:
    """Take a `mode` value apart.

    Raises:
        ResourceError: it is none of MODES.
    """
    if text not in MODES:
        raise ResourceError(f"mode {text!r} is none of {', '.join(MODES)}", errno.EINVAL)
    return MODES[text]


def check_mode(params: Params, mode: Mode) -> None:
    """Check that an image of this format may be opened in this mode.

    Raises:
        ResourceError
    """
    if mode.writable and params.format in (*PACKED, *WEB):
        raise ResourceError(f"{params}: {params.format} can only be read; attach it with mode r", errno.EROFS)
    if mode.writable and mode.shared and params.format in QEMU:
        raise ResourceError(
            f"{params}: a {params.format} image cannot have two writers, who would destroy its tables; use mode w",
            errno.EINVAL,
        )


def nbd_address(params: Params) -> Address:
    """The NBD server that `nbd:` or `nbd+unix:` names.

    Raises:
        ResourceError: it names none.
    """
    try:
        return parse_address(*params)
    except NbdError as error:
        raise ResourceError(f"params: {error}", error.errno) from error


def nbdkit_words(params: Params) -> list[str]:
    """The filters, the plugin and its parameters that `nbdkit:` names, as words of a command.

    Raises:
        ResourceError: one of them is not allowed.
    """
    words = params.target.split()
    filters = []
    while words and words[0].startswith("--filter="):
        filters.append(words.pop(0))
    plugin, *parameters = words or [""]
    bad_filter = next((word for word in filters if word.removeprefix("--filter=") not in FILTERS), None)
    if bad_filter is not None:
        raise ResourceError(f"{params}: {bad_filter} is not one of {', '.join(sorted(FILTERS))}", errno.EINVAL)
    if plugin not in PLUGINS:
        raise ResourceError(f"{params}: plugin {plugin!r} is not one of {', '.join(sorted(PLUGINS))}", errno.EINVAL)
    if bad := [word for word in parameters if not re.fullmatch(r"[a-z][a-z0-9_.-]*=.*", word)]:
        raise ResourceError(f"{params}: {bad[0]!r} is no KEY=VALUE", errno.EINVAL)
    return [*filters, plugin, *parameters]


def _raw_path(text: str, target: str) -> str:
    if target.startswith("/"):
        return target
    if not target or ":" in target:
        wrong = "this is no format" if target else "no image is named"
        raise ResourceError(f"params {text!r}: {wrong}; write an absolute path, as in raw:/srv/disk.img", errno.EINVAL)
    return f"/dev/{target}"
