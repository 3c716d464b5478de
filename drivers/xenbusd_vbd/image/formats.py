"""The programs that serve images, by format, and their command lines. Pure: no I/O here.

Each command names the driver for the image and for the file below it, so that neither the image's contents nor the
spelling of its name can make the program open anything else (XSA-258). The words go to the program one by one, never
through a shell.

Source: qemu-nbd(8), qemu(1) -blockdev, nbdkit(1), nbdkit-file-plugin(1), nbdkit-curl-plugin(1).
"""

from __future__ import annotations

from typing import NamedTuple

from xenbusd_vbd.image.params import PACKED, QEMU, WEB, Params, nbdkit_words

CACHES = {"writeback": ("--cache=writeback",), "none": ("--cache=none", "--aio=native")}
"""The option `image_cache` -> qemu-nbd's words: through the host's page cache, or past it."""

PACKAGES = {"qemu-nbd": "qemu-utils", "qemu-img": "qemu-utils", "nbdkit": "nbdkit", "setpriv": "util-linux"}
"""Program -> Debian's package."""


class Target(NamedTuple):
    """An image, and how it is to be served."""

    format: str
    path: str
    """As it stands in `params` behind the format and its colon."""
    writable: bool
    shared: bool = False
    """Read although another program may write ("r!")."""
    is_device: bool = False
    cache: str = "writeback"

    def __str__(self) -> str:
        return f"{self.format}:{self.path}"


def command(target: Target, socket_path: str) -> list[str]:
    """The words of the command that serves an image on a UNIX socket, and ends at SIGTERM.

    Raises:
        ResourceError: `nbdkit:` names something that is not allowed.
    """
    if target.format in QEMU:
        return [
            "qemu-nbd",
            f"--socket={socket_path}",
            "--shared=2",  # a second client may ask for the size
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
    return [*nbdkit, *nbdkit_words(Params(target.format, target.path))]


def image_options(target: Target) -> str:
    """What QEMU's programs take behind --image-opts; a comma in a path is doubled there."""
    path = target.path.replace(",", ",,")
    below = "host_device" if target.is_device else "file"
    options = f"driver={QEMU[target.format]},file.driver={below},file.filename={path}"
    return f"{options},force-share=on" if target.shared else options


def inspect_command(target: Target) -> list[str]:
    """The words of the command that describes an image of QEMU's formats, opening no file behind it."""
    return ["qemu-img", "info", "--output=json", "--force-share", "--image-opts", image_options(target)]
