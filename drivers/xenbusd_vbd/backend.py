"""The vbd backend: serves a raw file or a block device as a disk. The keys are in this package's README."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Mapping

from xenbusd.api import Backend, BackendDevice, Devid, Directories, ImageError, UsageError, boolean, choice, text
from xenbusd_vbd.image import Image
from xenbusd_vbd.pages import CopiedPages, Pages, PersistentPages
from xenbusd_vbd.protocol import (
    ABIS,
    DEFAULT_ABI,
    MAX_RING_PAGE_ORDER,
    SECTOR,
    VDISK_CDROM,
    VDISK_READONLY,
    VDISK_REMOVABLE,
)
from xenbusd_vbd.server import BlockServer
from xenbusd_vbd.toolstack import directories, parse_vdev

FENCE_S = 10.0
"""How long the last I/O of the process before us may take, when we go on with its ring."""


class VbdBackend(Backend, device_class="vbd"):
    """Serve one disk."""

    @classmethod
    def parse_devid(cls, text: str) -> Devid:
        """Read xvda, sdb2 or 51712."""
        return Devid(parse_vdev(text))

    @classmethod
    def directories(cls, devid: Devid, parameters: Mapping[str, str]) -> Directories:
        """Take target=, mode= and the others of `xenbusd_vbd.toolstack.PARAMETERS`; the target must be there."""
        keys = directories(devid, parameters)
        path = raw_path(keys.backend["params"])
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise UsageError(f"vbd: cannot serve {path}: {error.strerror}") from None
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UsageError(f"vbd: cannot serve {path}: it is neither a regular file nor a block device")
        return keys

    async def run(self, dev: BackendDevice) -> None:
        """Live through one connection: open the image, connect, serve until the frontend has closed."""
        await dev.advertise(max_ring_page_order=MAX_RING_PAGE_ORDER)
        abi = ABIS[await dev.otherend.read("protocol", choice(*ABIS), default=DEFAULT_ABI)]
        persistent = await dev.otherend.read("feature-persistent", boolean, default=False)
        image = await self._open(dev)
        try:
            published = await self._properties(dev, image)
            async with dev.connect(abi.ring, in_order=True, **published) as link:
                pages: Pages = (PersistentPages if persistent else CopiedPages)(link.grants, dev.otherend.domid)
                server = BlockServer(link, abi, image, pages)
                try:
                    await link.serve(server.drain)
                finally:
                    await server.finish()
        finally:
            image.close()

    async def _open(self, dev: BackendDevice) -> Image:
        """Open what the hotplug script found, or what the toolstack asked for; only B is trusted to say it (XSA-175).

        Raises:
            ImageError: the target is missing, in use, of a kind that is not served, or not to be opened as asked.
        """
        mode = await dev.own.read("mode", text)
        params = await dev.own.read("params", text)
        path = await dev.own.read("physical-device-path", text, default=raw_path(params))
        deadline = time.monotonic() + FENCE_S * dev.adopted
        while True:
            try:
                return await asyncio.to_thread(Image, path, writable="w" in mode, shared="!" in mode)
            except ImageError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.05)  # the process before us has I/O under way, and the lock with it

    async def _properties(self, dev: BackendDevice, image: Image) -> dict[str, int]:
        """What the frontend reads once we are Connected (T27)."""
        info = 0 if image.writable else VDISK_READONLY
        if await dev.own.read("removable", boolean, default=False):
            info |= VDISK_REMOVABLE
        if await dev.own.read("device-type", text, default="disk") == "cdrom":
            info |= VDISK_CDROM
        properties = {
            "sectors": image.sectors,
            "info": info,
            "sector_size": SECTOR,  # the one value that every frontend reads alike (T35)
            "physical_sector_size": image.physical_sector_bytes,
            "feature_persistent": 1,
            "feature_flush_cache": int(image.writable),
            "feature_barrier": int(image.writable),
        }
        if not await dev.own.read("discard-enable", boolean, default=True):
            image.can_discard = False
        if image.can_discard:
            properties |= {"feature_discard": 1, "discard_granularity": 4096, "discard_alignment": 0}
        return properties


def raw_path(params: str) -> str:
    """The path in a `params` value: "/path" or "raw:/path".

    Raises:
        ImageError: another format, or no absolute path. The format is never guessed from the image (XSA-258).
    """
    format, colon, path = params.partition(":")
    if not colon or "/" in format:
        format, path = "raw", params
    if format not in ("raw", "aio"):
        raise ImageError(f"params {params!r}: format {format!r} is not served; use raw:/path", errno.EINVAL)
    if not path.startswith("/"):
        raise ImageError(f"params {params!r}: write an absolute path, as in raw:/srv/disk.img", errno.EINVAL)
    return path
