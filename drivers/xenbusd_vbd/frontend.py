"""The vbd frontend: a disk for this domain's programs, as an NBD export on a UNIX socket, and at /dev/nbdN where the
kernel has the nbd module. The keys are in this package's README."""

from __future__ import annotations

from xenbusd.api import Frontend, FrontendDevice, NodeValueError, boolean, unsigned
from xenbusd_vbd.nbd_device import Kernel, NbdDevice, NbdDeviceError
from xenbusd_vbd.nbd_export import NbdExport
from xenbusd_vbd.protocol import SECTOR, VDISK_READONLY, X86_64
from xenbusd_vbd.queue import BlockQueue, Geometry, pool_pages

SETTLE_S = 5.0
"""How long requests in the ring may take once the backend has asked us to close."""

SECTORS_MAX = 1 << 54
"""8 EiB: more cannot be addressed in bytes."""


class VbdFrontend(Frontend, device_class="vbd"):
    """Offer one disk. The export and its clients outlive a ring, for as long as the device is there."""

    def __init__(self) -> None:
        self._queue: BlockQueue | None = None
        self._export: NbdExport | None = None
        self._device: NbdDevice | None = None

    async def run(self, dev: FrontendDevice) -> None:
        """Live through one connection: offer a ring and data pages, learn the disk's geometry, pass requests on."""
        await dev.backend_ready()
        async with dev.offer(X86_64.ring, protocol=X86_64.name, feature_persistent=1) as link:
            geometry = await read_geometry(dev)
            pool = link.grants.share(dev.otherend.domid, pool_pages(link.ring.size))
            queue = self._queue = self._queue or BlockQueue(geometry)
            try:
                queue.attach(link, X86_64, pool, geometry)
                await self._offer_to_programs(dev, queue)
                await dev.connected()
                await link.serve(queue.drain)
                if not await queue.settle(SETTLE_S):
                    dev.log.warning("otherend.late", reason="requests were left in the ring")
            finally:
                queue.detach()
                pool.unshare()

    async def _offer_to_programs(self, dev: FrontendDevice, queue: BlockQueue) -> None:
        if self._export is None:
            name = await dev.own.read("virtual-device", unsigned(), default=int(dev.id.devid))
            self._export = NbdExport(queue, name=f"vbd-{name}", log=dev.log.warning)
            await self._export.listen(dev.run_path("sock"))
            if dev.options.get("nbd_device", True) and Kernel().has_nbd():
                await self._attach_to_kernel(dev, self._export)

    async def _attach_to_kernel(self, dev: FrontendDevice, export: NbdExport) -> None:
        """Make the disk a block device of this domain; without one, it still has its socket."""
        try:
            self._device = await NbdDevice.attach(export)
        except NbdDeviceError as error:
            dev.log.warning("nbd.failed", error=str(error))
        else:
            dev.log.info("nbd.attached", path=self._device.path)

    async def close(self) -> None:
        """The device is gone: fail what is left, and end the block device and the export."""
        if self._queue is not None:
            self._queue.die()
        if self._device is not None:
            await self._device.detach()
        if self._export is not None:
            await self._export.close()


async def read_geometry(dev: FrontendDevice) -> Geometry:
    """Read what the backend has published, and believe none of it unchecked.

    Raises:
        NodeValueError: a key is missing or cannot be.
    """
    read = dev.otherend.read
    sector_size = await read("sector-size", unsigned(1 << 16), default=SECTOR)
    if sector_size < SECTOR or sector_size & (sector_size - 1):
        raise NodeValueError(
            f"{dev.otherend.path}/sector-size is {sector_size}; it should be 512 or a larger power of 2"
        )
    return Geometry(
        sectors=await read("sectors", unsigned(SECTORS_MAX)),
        read_only=bool(await read("info", unsigned()) & VDISK_READONLY),
        can_flush=await read("feature-flush-cache", boolean, default=False),
        can_trim=await read("feature-discard", boolean, default=False),
        physical_sector_bytes=await read("physical-sector-size", unsigned(1 << 24), default=sector_size),
    )
