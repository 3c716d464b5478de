"""The vbd backend: serves an image as a disk. The keys are in this package's README."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from xenbusd.api import (
    Backend,
    BackendDevice,
    BackLink,
    Devid,
    Directories,
    Raw,
    UsageError,
    boolean,
    choice,
    text,
)
from xenbusd_vbd.back.live import LIVE, LiveDisk
from xenbusd_vbd.back.pages import CopiedPages, Pages, PersistentPages
from xenbusd_vbd.back.server import BlockServer
from xenbusd_vbd.image.engine import Engine
from xenbusd_vbd.image.opening import open_engine
from xenbusd_vbd.image.params import RAW, parse
from xenbusd_vbd.options import check
from xenbusd_vbd.protocol import (
    ABIS,
    DEFAULT_ABI,
    INDIRECT_SEGMENTS_MAX,
    MAX_RING_PAGE_ORDER,
    SECTOR,
    VDISK_CDROM,
    VDISK_READONLY,
    VDISK_REMOVABLE,
    Abi,
    Request,
)
from xenbusd_vbd.toolstack import directories, live_keys, parse_vdev

QUEUES_MAX = 4
"""Queues that a frontend may have, unless the configuration says otherwise. They share one thread of ours: they are for
the guest's processors."""


class VbdBackend(Backend, device_class="vbd"):
    """Serve one disk."""

    claimed_by_script = "block-xenbusd"
    linux_module = "xen-blkback"
    live = LIVE

    @classmethod
    def check_options(cls, options: Mapping[str, object]) -> None:
        """Take those of `xenbusd_vbd.options`."""
        check(options)

    @classmethod
    def parse_devid(cls, text: str) -> Devid:
        """Read xvda, sdb2 or 51712."""
        return Devid(parse_vdev(text))

    @classmethod
    def directories(cls, devid: Devid, parameters: Mapping[str, str]) -> Directories:
        """Take target=, mode= and the others of `xenbusd_vbd.toolstack.PARAMETERS`; a local target must be there."""
        keys = directories(devid, parameters)
        params = parse(keys.backend["params"])
        path = params.path
        if path is None:
            return keys  # on the network
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            hint = "" if path in keys.backend["params"] else "; write the absolute path of what is not in /dev"
            raise UsageError(f"vbd: cannot serve {path}: {error.strerror}{hint}") from None
        if params.format == RAW and not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UsageError(f"vbd: cannot serve {path}: it is neither a regular file nor a block device")
        return keys

    @classmethod
    def live_keys(cls, parameters: Mapping[str, str]) -> dict[str, str]:
        """Take iops=, bandwidth= and pause=."""
        return live_keys(parameters)

    async def run(self, dev: BackendDevice) -> None:
        """Live through one connection: open the image, connect, serve until the frontend has closed."""
        queues = int(dev.options.get("queues", QUEUES_MAX))
        await dev.advertise(
            max_ring_page_order=MAX_RING_PAGE_ORDER,
            multi_queue_max_queues=queues,
            feature_max_indirect_segments=INDIRECT_SEGMENTS_MAX,
        )
        abi = ABIS[await dev.otherend.read("protocol", choice(*ABIS), default=DEFAULT_ABI)]
        persistent = await dev.otherend.read("feature-persistent", boolean, default=False)
        disk = LiveDisk(dev, lambda: open_engine(dev))
        try:
            engine = await disk.open()
            published = await properties(dev, engine) if engine is not None else {}
            connecting = dev.connect_queues(abi.ring, max_queues=queues, in_order=True, **published)
            async with connecting as links:
                servers = [self._server(dev, link, abi, engine, disk, persistent) for link in links]
                await disk.serve(links, servers)
        finally:
            await disk.close()

    @staticmethod
    def _server(
        dev: BackendDevice, link: BackLink[Raw, Raw], abi: Abi, engine: Engine | None, disk: LiveDisk, persistent: bool
    ) -> BlockServer:
        def failed(request: Request) -> None:
            dev.log.error("image.failed", op=request.op, sector=request.sector, sectors=request.sectors)

        pages: Pages = (PersistentPages if persistent else CopiedPages)(link.grants, dev.otherend.domid)
        return BlockServer(
            link, abi, engine, pages, disk.limits, indirect_segments=INDIRECT_SEGMENTS_MAX, failed=failed
        )


async def properties(dev: BackendDevice, engine: Engine) -> dict[str, int]:
    """What the frontend reads once we are Connected (T27)."""
    info = 0 if engine.writable else VDISK_READONLY
    if await dev.own.read("removable", boolean, default=False):
        info |= VDISK_REMOVABLE
    if await dev.own.read("device-type", text, default="disk") == "cdrom":
        info |= VDISK_CDROM
    published = {
        "sectors": engine.sectors,
        "info": info,
        "sector_size": SECTOR,  # the one value that every frontend reads alike (T35)
        "physical_sector_size": engine.physical_sector_bytes,
        "feature_persistent": 1,
        "feature_flush_cache": int(engine.writable),
        "feature_barrier": int(engine.writable),
    }
    if not await dev.own.read("discard-enable", boolean, default=True):
        engine.can_discard = engine.can_discard_securely = False
    if engine.can_discard:
        published |= {
            "feature_discard": 1,
            "discard_granularity": engine.discard_granularity,
            "discard_alignment": engine.discard_alignment,
            "discard_secure": int(engine.can_discard_securely),
        }
    return published
