"""The vbd frontend: a disk for this domain's programs, as an NBD export on a UNIX socket, and at /dev/nbdN where the
kernel has the nbd module. The keys and options are in this package's README.

Decision: D33.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from xenbusd.api import Counter, Frontend, FrontendDevice, PagePool, XenbusdError, unsigned
from xenbusd_vbd.front.geometry import SECTORS_MAX, read_features, read_geometry
from xenbusd_vbd.front.pool import PAGES, PAGES_LEAST
from xenbusd_vbd.front.ring_disk import RingDisk
from xenbusd_vbd.nbd.export import NbdExport
from xenbusd_vbd.nbd.kernel import Kernel, NbdDevice, NbdDeviceError
from xenbusd_vbd.nbd.server_requests import COUNTED
from xenbusd_vbd.options import check
from xenbusd_vbd.protocol import SECTOR, X86_64

SETTLE_S = 5.0
"""How long requests in the rings may take after the backend has asked to close."""


class VbdFrontend(Frontend, device_class="vbd"):
    """Offer one disk. The export and its clients outlive the rings; they last as long as the device."""

    counters = tuple(Counter(name, unit, help, rare=True) for name, (unit, help) in COUNTED.items())
    disk: RingDisk | None = None
    """The disk, from the first connection on."""

    @classmethod
    def check_options(cls, options: Mapping[str, object]) -> None:
        """Accept the options of `xenbusd_vbd.options`."""
        check(options)

    def __init__(self) -> None:
        self._export: NbdExport | None = None
        self._device: NbdDevice | None = None

    async def run(self, dev: FrontendDevice) -> None:
        """Serve one connection: offer rings and data pages, read the disk's geometry, and pass requests on."""
        wanted, pages = int(dev.options.get("queues", 1)), int(dev.options.get("pages", PAGES))
        wanted_order = int(dev.options.get("ring_page_order", 0))
        await dev.backend_ready()
        features = await read_features(dev)
        queues = min(wanted, features.queues)
        order = min(wanted_order, features.ring_page_order or 0) or None  # one page, in the spelling that all know
        async with dev.offer_queues(
            X86_64.ring, queues=queues, order=order, protocol=X86_64.name, feature_persistent=1
        ) as links:
            geometry = await read_geometry(dev)
            pool = PagePool.share(links[0].grants, dev.otherend.domid, pages, PAGES_LEAST)
            disk = self.disk = self.disk or RingDisk(geometry)
            following: asyncio.Task[None] | None = None
            try:
                attached = disk.attach(links, X86_64, pool, geometry, features.indirect_segments)
                await self.offer_to_programs(dev, disk)
                await dev.connected()
                for link, ring in zip(links, attached, strict=True):
                    link.start(ring.drain)
                following = asyncio.create_task(self._follow(dev, disk))
                await dev.until_ended()
                if not await disk.settle(SETTLE_S):
                    dev.log.warning("otherend.late", reason="requests were left in the ring")
            finally:
                if following is not None:
                    following.cancel()
                disk.detach()
                pool.close()

    async def offer_to_programs(self, dev: FrontendDevice, disk: RingDisk) -> None:
        """Export the disk, or update the size in the export.

        Called for each connection, before it is Connected. A subclass that uses the disk itself overrides this.
        """
        if self._export is not None:
            await self._resized(dev, self._export)  # the disk may be another backend's, or have grown meanwhile
            return
        name = await dev.own.read("virtual-device", unsigned(), default=int(dev.id.devid))
        self._export = NbdExport(disk, name=f"vbd-{name}", log=dev.log.warning, counters=dev.counters.own.counts)
        await self._export.listen(dev.run_path("sock"))
        if dev.options.get("nbd_device", True) and Kernel().has_nbd():
            await self._attach_to_kernel(dev, self._export)

    async def _attach_to_kernel(self, dev: FrontendDevice, export: NbdExport) -> None:
        """Make the disk a block device of this domain. If that fails, the disk is served on its socket all the same."""
        try:
            self._device = await NbdDevice.attach(export)
        except NbdDeviceError as error:
            dev.log.warning("nbd.failed", error=str(error))
        else:
            dev.log.info("nbd.attached", path=self._device.path)

    async def _follow(self, dev: FrontendDevice, disk: RingDisk) -> None:
        """Follow the disk's size: the backend writes it again, and then its state, unchanged (T34)."""
        try:
            async for _ in dev.changes():
                sectors = await dev.otherend.read("sectors", unsigned(SECTORS_MAX), default=0)
                if sectors and sectors * SECTOR != disk.size_bytes:
                    await self._follow_to(dev, disk, sectors)
        except XenbusdError as error:
            dev.fail(error)

    async def _follow_to(self, dev: FrontendDevice, disk: RingDisk, sectors: int) -> None:
        old, new = disk.size_bytes // SECTOR, sectors // (disk.block_size // SECTOR) * (disk.block_size // SECTOR)
        if new == old:
            return
        disk.resize(new)
        if new < old:  # programs keep the size they know; the backend refuses requests behind the new end
            dev.log.warning("disk.shrunk", old_sectors=old, new_sectors=new)
        else:
            dev.log.info("disk.grown", old_sectors=old, new_sectors=new)
        if self._export is not None:
            await self._resized(dev, self._export)

    async def _resized(self, dev: FrontendDevice, export: NbdExport) -> None:
        """Offer the export's next clients the new size. The kernel's device gets it at once, if the disk has grown."""
        before = export.size_bytes
        export.refresh()
        if self._device is not None and export.size_bytes > before:
            try:
                await self._device.resize()
            except NbdDeviceError as error:
                dev.log.warning("nbd.failed", error=str(error))

    async def close(self) -> None:
        """The device is gone: fail the requests that are left, and end the block device and the export."""
        if self.disk is not None:
            self.disk.die()
        if self._device is not None:
            await self._device.detach()
        if self._export is not None:
            await self._export.close()
