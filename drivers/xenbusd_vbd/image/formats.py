"""Which formats are served by which program, and how it is called. Pure: no I/O here.

The format is always stated, never probed (XSA-258): each command names the driver for the image and for the file below
it, so that neither what stands in the image nor how its name is spelt can make the program open anything else. The
words go to the program one by one, never through a shell.

Source: qemu-nbd(8), qemu(1) -blockdev, nbdkit(1), nbdkit-file-plugin(1), nbdkit-curl-plugin(1).
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from xenbusd.api import ResourceError

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
"""What `params` says -> what QEMU calls it."""

PACKED = {"xz": "xz", "gz": "gzip"}
"""Compressed raw images, read-only -> nbdkit's filter."""

WEB = ("http", "https")
"""Raw images on a web server, read-only, by nbdkit's curl plugin."""

NETWORK = ("nbd", "nbd+unix")
"""Somebody else's NBD server: nothing is started."""

PLUGINS = frozenset(
    {"curl", "data", "file", "floppy", "iso", "memory", "nbd", "null", "partitioning", "pattern", "split", "ssh"}
)
FILTERS = frozenset(
    {"blocksize", "cache", "cow", "ext2", "gzip", "luks", "offset", "partition", "rate", "readahead", "retry", "tar"}
    | {"truncate", "xz"}
)
"""What `nbdkit:` may name: all but what runs programs, writes logs or is made for tests of clients."""

CACHES = {"writeback": ("--cache=writeback",), "none": ("--cache=none", "--aio=native")}
"""Through the host's page cache, or past it, to qemu-nbd."""

PACKAGES = {"qemu-nbd": "qemu-utils", "qemu-img": "qemu-utils", "nbdkit": "nbdkit", "setpriv": "util-linux"}
"""Program -> Debian's package."""


class Target(NamedTuple):
    """An image, and how it is to be served."""

    format: str
    path: str
    """As it stands in `params` behind the format and its colon."""
    writable: bool
    shared: bool = False
    """Read although another may write ("r!")."""
    is_device: bool = False
    cache: str = "writeback"

    def __str__(self) -> str:
        return f"{self.format}:{self.path}"


def formats() -> tuple[str, ...]:
    """All formats that are served, as `params` names them, besides raw."""
    return (*QEMU, *PACKED, *WEB, "nbdkit", *NETWORK)


def check(target: Target) -> None:
    """See whether a target can be served at all, before anything is opened.

    Raises:
        ResourceError: the format is not known, the path is not absolute, or the mode does not go with the format.
    """
    if target.format not in formats():
        known = ", ".join(formats())
        raise ResourceError(f"format {target.format!r} is not served; write raw, {known}", errno.EINVAL)
    if "\0" in target.path:
        raise ResourceError("params: there is a NUL in it", errno.EINVAL)
    if has_file(target.format) and not target.path.startswith("/"):
        raise ResourceError(f"{target}: write an absolute path, as in {target.format}:/srv/disk.img", errno.EINVAL)
    if target.format in WEB and not re.fullmatch(r"//[^\s/]+/\S+", target.path):
        raise ResourceError(f"{target}: write an address, as in {target.format}://host/disk.img", errno.EINVAL)
    if target.writable and target.format in (*PACKED, *WEB):
        raise ResourceError(f"{target}: {target.format} can only be read; attach it with mode r", errno.EROFS)
    if target.writable and target.shared and target.format in QEMU:
        raise ResourceError(
            f"{target}: a {target.format} image cannot have two writers, who would destroy its tables; use mode w",
            errno.EINVAL,
        )
    if target.cache not in tuple(CACHES):
        raise ResourceError(f"image_cache is {target.cache!r}; write one of {', '.join(CACHES)}", errno.EINVAL)
    if target.format == "nbdkit":
        _words(target)


def has_file(format: str) -> bool:
    """Whether `params` names a file or block device of this host."""
    return format in QEMU or format in PACKED


def command(target: Target, socket_path: str) -> list[str]:
    """The words of the command that serves a checked target on a UNIX socket, and ends at SIGTERM.

    Raises:
        ResourceError: it does not name what nbdkit may be asked for.
    """
    if target.format in QEMU:
        return [
            "qemu-nbd",
            f"--socket={socket_path}",
            "--shared=2",  # a second one may look at the size
            *CACHES[target.cache],
            "--discard=unmap",
            *(() if target.writable else ("--read-only",)),
            "--image-opts",
            image_options(target),
        ]
    nbdkit = ["nbdkit", "--foreground", "--unix", socket_path, *(() if target.writable else ("--readonly",))]
    if target.format in PACKED:
        return [*nbdkit, f"--filter={PACKED[target.format]}", "file", f"file={target.path}"]
    if target.format in WEB:
        return [*nbdkit, "curl", f"url={target}"]
    return [*nbdkit, *_words(target)]


def image_options(target: Target) -> str:
    """What QEMU's programs take behind --image-opts; a comma in a path is doubled there."""
    path = target.path.replace(",", ",,")
    below = "host_device" if target.is_device else "file"
    options = f"driver={QEMU[target.format]},file.driver={below},file.filename={path}"
    return f"{options},force-share=on" if target.shared else options


def look_command(target: Target) -> list[str]:
    """The words of the command that tells what an image of QEMU's formats is like, opening no file behind it."""
    return ["qemu-img", "info", "--output=json", "--force-share", "--image-opts", image_options(target)]


def _words(target: Target) -> list[str]:
    """The plugin, filters and parameters of `nbdkit:[--filter=NAME ...] PLUGIN [KEY=VALUE ...]`."""
    words = target.path.split()
    filters = []
    while words and words[0].startswith("--filter="):
        filters.append(words.pop(0))
    plugin, *parameters = words or [""]
    bad_filter = next((word for word in filters if word.removeprefix("--filter=") not in FILTERS), None)
    if bad_filter is not None:
        raise ResourceError(f"{target}: {bad_filter} is not one of {', '.join(sorted(FILTERS))}", errno.EINVAL)
    if plugin not in PLUGINS:
        raise ResourceError(f"{target}: plugin {plugin!r} is not one of {', '.join(sorted(PLUGINS))}", errno.EINVAL)
    if bad := [word for word in parameters if not re.fullmatch(r"[a-z][a-z0-9_.-]*=.*", word)]:
        raise ResourceError(f"{target}: {bad[0]!r} is no KEY=VALUE", errno.EINVAL)
    return [*filters, plugin, *parameters]
