"""A disk made of one ring, and a caller that uses it."""

from __future__ import annotations

import pytest

from tests.doubles.backend_rings import GEOMETRY, Caller, Ring
from xenbusd_vbd.front.ring_disk import RingDisk


@pytest.fixture
async def ring() -> Ring:
    """A ring."""
    return Ring()


@pytest.fixture
async def disk(ring: Ring) -> RingDisk:
    """A disk attached to it."""
    disk = RingDisk(GEOMETRY)
    ring.attach(disk)
    return disk


@pytest.fixture
def caller() -> Caller:
    """The caller of the disk."""
    return Caller()
