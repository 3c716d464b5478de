"""The keys that describe a disk to its frontend."""

from __future__ import annotations

from xenbusd.api import BackendDevice, boolean, text
from xenbusd_vbd.image.engine import Engine
from xenbusd_vbd.protocol import SECTOR, VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE


async def properties(dev: BackendDevice, engine: Engine) -> dict[str, int]:
    """The keys that are published with Connected (T27), derived from the toolstack's keys and the image.

    With `discard-enable` 0 the engine forgets that its image can discard.

    Raises:
        NodeValueError: a key of the toolstack's has an impossible value.
    """
    # `info` has VDISK_* bits (T38).
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
