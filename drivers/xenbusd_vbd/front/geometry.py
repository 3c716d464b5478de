"""What the backend has published of its disk and of itself, none of it believed unchecked."""

from __future__ import annotations

from dataclasses import dataclass

from xenbusd.api import PAGE_SIZE, FrontendDevice, NodeValueError, boolean, unsigned
from xenbusd_vbd.protocol import FLUSH_DISKCACHE, SECTOR, VDISK_CDROM, VDISK_READONLY, WRITE_BARRIER

SECTORS_MAX = 1 << 54
"""8 EiB: more cannot be addressed in bytes."""


@dataclass(frozen=True)
class Limits:
    """What the backend takes; read at its InitWait."""

    queues: int
    ring_page_order: int | None
    """None: it has not been told of, which means one page in the old spelling (T28)."""
    indirect_segments: int
    """Of one request; 0: it takes no indirect ones."""


@dataclass(frozen=True)
class Geometry:
    """The disk; read once the backend is Connected."""

    sectors: int
    """Capacity in 512 bytes, whatever `sector_bytes` is (T35)."""
    read_only: bool
    flush_op: int | None
    """What puts written data on stable storage: FLUSH_DISKCACHE, an empty WRITE_BARRIER (T37), or nothing does."""
    can_trim: bool
    sector_bytes: int = SECTOR
    """The unit that requests must keep to."""
    physical_sector_bytes: int = SECTOR
    discard_granularity: int = SECTOR
    """Bytes: nothing smaller is forgotten."""
    discard_alignment: int = 0
    """Bytes from the start of the disk to the first whole granule."""
    is_cdrom: bool = False


async def read_limits(dev: FrontendDevice) -> Limits:
    """Read what the backend takes.

    Raises:
        NodeValueError: a key cannot be.
    """
    read = dev.otherend.read
    order = await read("max-ring-page-order", unsigned(), default=-1)
    return Limits(
        queues=max(await read("multi-queue-max-queues", unsigned(), default=1), 1),
        ring_page_order=None if order < 0 else order,
        indirect_segments=await read("feature-max-indirect-segments", unsigned(), default=0),
    )


async def read_geometry(dev: FrontendDevice) -> Geometry:
    """Read what the disk is like.

    Raises:
        NodeValueError: a key is missing or cannot be.
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
    info = await read("info", unsigned())
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
