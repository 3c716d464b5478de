"""The vbd backend: serves an image as a disk. The keys are in this package's README.

Decision: D16.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping

from xenbusd.api import (
    Backend,
    BackendDevice,
    BackLink,
    Devid,
    Directories,
    Finding,
    InOrder,
    Nodes,
    Raw,
    UsageError,
    boolean,
    choice,
)
from xenbusd_vbd.back.live import LiveDisk
from xenbusd_vbd.back.pages import CopiedPages, Pages, PersistentPages
from xenbusd_vbd.back.properties import properties
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
    Abi,
    Request,
)
from xenbusd_vbd.toolstack import LIVE, directories, parse_vdev

QUEUES_DEFAULT = 4
"""Queues that a frontend may have, unless the configuration says otherwise. One thread of ours serves them all: they
let several processors of the guest send requests at once."""


class VbdBackend(Backend, device_class="vbd"):
    """Serve one image as a disk."""

    claimed_by_script = "block-xenbusd"
    linux_module = "xen-blkback"
    live = LIVE

    @classmethod
    def check_options(cls, options: Mapping[str, object]) -> None:
        """Accept the options of `xenbusd_vbd.options`."""
        check(options)

    @classmethod
    def parse_devid(cls, text: str) -> Devid:
        """Read xvda, sdb2 or 51712."""
        return Devid(parse_vdev(text))

    @classmethod
    def directories(cls, devid: Devid, parameters: Mapping[str, str]) -> Directories:
        """Accept target=, mode= and the others of `xenbusd_vbd.toolstack.PARAMETERS`. A local target must exist."""
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
    def explain(cls, nodes: Nodes) -> Iterator[Finding]:
        """Say that the disk is paused: its requests wait for as long as that is so."""
        if nodes.backend.get("paused") == b"1":
            yield Finding("the disk", "is paused", "resume it with `xenbusctl resume`")

    def __init__(self) -> None:
        self._disk: LiveDisk | None = None

    def condition(self) -> Iterator[Finding]:
        """Say that the image server has gone: the disk's requests wait for the next one."""
        if self._disk is not None and self._disk.is_without_server:
            yield Finding("the image server", "has gone; another is being started, or connected to")

    async def run(self, dev: BackendDevice) -> None:
        """Serve one connection: open the image, connect, and serve until the frontend has closed."""
        queues = int(dev.options.get("queues", QUEUES_DEFAULT))
        await dev.advertise(  # the limits of a ring (T26)
            max_ring_page_order=MAX_RING_PAGE_ORDER,
            multi_queue_max_queues=queues,
            feature_max_indirect_segments=INDIRECT_SEGMENTS_MAX,
        )
        abi = ABIS[await dev.otherend.read("protocol", choice(*ABIS), default=DEFAULT_ABI)]
        persistent = await dev.otherend.read("feature-persistent", boolean, default=False)
        disk = self._disk = LiveDisk(dev, lambda: open_engine(dev))
        try:
            engine = await disk.open()
            published = await properties(dev, engine) if engine is not None else {}
            connecting = dev.connect_queues(abi.ring, max_queues=queues, journal=InOrder(), **published)
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
