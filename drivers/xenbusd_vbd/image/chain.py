"""The other files that an image leads to: a backing file, a file for its data, extents.

The author of an image chooses those names, and the image server opens them with our rights: an image that came from a
tenant can name any file of the host, and a backing file without a stated format would be probed (XSA-258). So an image
that leads to other files is served only if the configuration allows it, and only if each of them has a stated format.

Source: qemu-img(1), info; ImageInfo in qapi/block-core.json of QEMU.
Decision: D24.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from xenbusd.api import Child, ResourceError
from xenbusd_vbd.image.formats import Target, inspect_command
from xenbusd_vbd.image.params import QEMU
from xenbusd_vbd.image.server import complaint, environ, find

LENGTH_MAX = 32
"""Most images in one chain."""
DESCRIPTION_MAX = 64 << 20
"""Bytes of the description of one image."""
QEMU_IMG_S = 30.0
"""How long qemu-img may take to inspect one image; under emulation it takes seconds."""


async def check_chain(target: Target, *, allowed: bool) -> None:
    """Inspect an image of one of QEMU's formats, and those behind it.

    Args:
        target: checked.
        allowed: whether it may lead to other files (`backing_files` of the configuration).

    Raises:
        ResourceError: it is not of the stated format, or leads to other files although it may not, or to a file without
            a stated format.
    """
    for _ in range(LENGTH_MAX):
        info = await _inspect(target)
        others = _others(target, info)
        if others and not allowed:
            raise ResourceError(
                f"{target} leads to another file, {others[0]}; if that is meant, write backing_files = true under "
                "[drivers.vbd]",
                errno.EPERM,
            )
        if "backing-filename" not in info:
            return
        format, path = info.get("backing-filename-format"), info.get("full-backing-filename", info["backing-filename"])
        if format == "raw":
            return
        if format not in QEMU or not path.startswith("/"):
            raise ResourceError(
                f"{target} has the backing file {path} of {f'format {format}' if format else 'no stated format'}; "
                "state one with qemu-img rebase -u -F FORMAT -b /path",
                errno.EINVAL,
            )
        target = Target(format, path, writable=False)
    raise ResourceError(f"{target}: its chain of backing files has over {LENGTH_MAX} images", errno.ELOOP)


def _others(target: Target, info: dict[str, Any]) -> list[str]:
    """The files that an image names besides itself."""
    data = info.get("format-specific", {}).get("data", {})
    named = [info.get("backing-filename"), data.get("data-file")]
    named += [extent.get("filename") for extent in data.get("extents", ())]
    return [name for name in named if name is not None and os.path.realpath(name) != os.path.realpath(target.path)]


async def _inspect(target: Target) -> dict[str, Any]:
    words = inspect_command(target)
    with os.fdopen(os.memfd_create("qemu-img"), "r+b") as file:
        child = Child([find(words[0]), *words[1:]], env=environ(), stdout=file.fileno())
        if not await child.finish(QEMU_IMG_S):
            raise ResourceError(f"qemu-img has not described {target} within {QEMU_IMG_S:g} s", errno.ETIMEDOUT)
        if child.status:
            raise complaint(target, "qemu-img", child.status, child.last_words[-1024:])
        file.seek(0)
        description = file.read(DESCRIPTION_MAX + 1)
    if len(description) > DESCRIPTION_MAX:
        raise ResourceError(f"qemu-img describes {target} in over {DESCRIPTION_MAX} bytes", errno.EFBIG)
    info: dict[str, Any] = json.loads(description)
    return info
