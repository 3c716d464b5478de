"""The keys that a backend publishes of itself and of its disk. Every value is checked before it is used."""

from __future__ import annotations

from dataclasses import dataclass

from xenbusd.api import PAGE_SIZE, FrontendDevice, NodeValueError, boolean, unsigned
from xenbusd_vbd.protocol import FLUSH_DISKCACHE, SECTOR, VDISK_CDROM, VDISK_READONLY, WRITE_BARRIER

SECTORS_MAX = 1 << 54
"""The largest disk: 8 EiB, of which every byte has an offset in 63 bits."""


@dataclass(frozen=True)
class Features:
    """What the backend can do; read at its InitWait."""

    queues: int
    ring_page_order: int | None
    """log2 of the most pages of a ring. None: the key is missing, so rings have one page, in the old spelling (T28)."""
    indirect_segments: int
    """Segments of one indirect request; 0: the backend takes no indirect requests."""


@dataclass(frozen=True)
class Geometry:
    """What the disk is like; read once the backend is Connected."""

    sectors: int
    """Capacity in 512 bytes, whatever `sector_bytes` is (T35)."""
    read_only: bool
    flush_op: int | None
    """The operation that puts written data on stable storage: FLUSH_DISKCACHE, or an empty WRITE_BARRIER (T37). None:
    there is no such operation."""
    can_trim: bool
    sector_bytes: int = SECTOR
    """The disk's sector: requests must be aligned to it."""
    physical_sector_bytes: int = SECTOR
    discard_granularity: int = SECTOR
    """Bytes: smaller ranges are not discarded."""
    discard_alignment: int = 0
    """Bytes from the start of the disk to the first whole granule."""
    is_cdrom: bool = False


async def read_features(dev: FrontendDevice) -> Features:
    """Read what the backend can do.

    Raises:
        NodeValueError: a key has no possible value.
    """
    read = dev.otherend.read
    order = await read("max-ring-page-order", unsigned(), default=-1)
    return Features(
        queues=max(await read("multi-queue-max-queues", unsigned(), default=1), 1),
        ring_page_order=None if order < 0 else order,
        indirect_segments=await read("feature-max-indirect-segments", unsigned(), default=0),
    )


async def read_geometry(dev: FrontendDevice) -> Geometry:
    """Read what the disk is like.

    Raises:
        NodeValueError: a key is missing, or has no possible value.
    """
    read = dev.otherend.read
    sector_bytes = await read("sector-size", unsigned(), default=SECTOR)
    if not SECTOR <= sector_bytes <= PAGE_SIZE or sector_bytes & (sector_bytes - 1):
        raise NodeValueError(
            f"{dev.otherend.path}/sector-size is {sector_bytes}; it should be 512, 1024, 2048 or {PAGE_SIZE}"
        )
    sectors = await read("sectors", unsigned(SECTORS_MAX))
    if sectors * SECTOR % sector_bytes:
        raise NodeValueError(f"{dev.otherend.path}/sectors is {sectors}, no whole number of {sector_bytes} bytes")
    info = await read("info", unsigned())  # VDISK_* bits (T38)
    flush_op = WRITE_BARRIER if await read("feature-barrier", boolean, default=False) else None
    if await read("feature-flush-cache", boolean, default=False):  # it outranks the barrier (T37)
        flush_op = FLUSH_DISKCACHE
    granularity = await read("discard-granularity", unsigned(), default=sector_bytes)
    return Geometry(
        sectors=sectors,
        read_only=bool(info & VDISK_READONLY),
        flush_op=flush_op,
        can_trim=await read("feature-discard", boolean, default=False),
        sector_bytes=sector_bytes,
        physical_sector_bytes=await read("physical-sector-size", unsigned(1 << 24), default=sector_bytes),
        discard_granularity=max(granularity // sector_bytes, 1) * sector_bytes,
        discard_alignment=await read("discard-alignment", unsigned(), default=0) // sector_bytes * sector_bytes,
        is_cdrom=bool(info & VDISK_CDROM),
    )
