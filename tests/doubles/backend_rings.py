"""The backend's end of a `RingDisk`'s rings: shows the requests that arrive, and answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tests.doubles.ring_pair import FakeLink, RingPair
from xenbusd.grants.pool import PagePool
from xenbusd.ids import PAGE_SIZE
from xenbusd_vbd.front.block_ring import BlockRing
from xenbusd_vbd.front.geometry import Geometry
from xenbusd_vbd.front.ring_disk import RingDisk
from xenbusd_vbd.protocol import FLUSH_DISKCACHE, INDIRECT, OKAY, READ, SEGMENT_BYTES, Request, expand

GEOMETRY = Geometry(sectors=1 << 24, read_only=False, flush_op=FLUSH_DISKCACHE, can_trim=True)
FIRST_GREF = 1000
SLOTS = 32
"""Of a ring of one page."""
MOST = 45056
"""Bytes of the largest request in a slot."""


class Pages:
    """Data pages that a disk and its backend share.

    Args:
        count: how many.
    """

    def __init__(self, count: int = 352) -> None:
        self.memory = bytearray(count * PAGE_SIZE)
        grefs = tuple(range(FIRST_GREF, FIRST_GREF + count))
        share: Any = SimpleNamespace(view=memoryview(self.memory), grefs=grefs, unshare=self.unshare)
        self.share = share
        self.pool = PagePool(share)

    def unshare(self) -> None:
        """Take the pages back, unless a slice of them is still in use."""
        self.share.view.release()
        self.memory.append(0)  # CPython refuses this while a view exists


class Ring(RingPair):
    """A ring that a disk is attached to, seen from the backend, with the data pages that go with it."""

    def __init__(self, pages: Pages | None = None) -> None:
        super().__init__()
        self.pages = pages or Pages()
        self.memory = self.pages.memory
        self.link = FakeLink(self.front)
        self.block_ring: BlockRing | None = None

    def attach(self, disk: RingDisk, geometry: Geometry = GEOMETRY, *, indirect: int = 0) -> None:
        """Give it to a disk."""
        attach([self], disk, geometry, indirect=indirect)

    def drain(self) -> bool:
        """Let the disk take the answers."""
        assert self.block_ring is not None
        return self.block_ring.drain()

    def requests(self) -> list[Request]:
        """Take the requests that are published; an indirect one as what it stands for."""
        return [self._expanded(request) for request in super().requests()]

    def _expanded(self, request: Request) -> Request:
        if request.op != INDIRECT:
            return request
        [gref] = request.grefs
        start = (gref - FIRST_GREF) * PAGE_SIZE
        return expand(request, bytes(self.memory[start : start + request.sectors * SEGMENT_BYTES]))

    def places(self, request: Request) -> list[slice]:
        """Where its segments are in `memory`."""
        return [
            slice(start + first * 512, start + (last + 1) * 512)
            for start, first, last in (
                ((gref - FIRST_GREF) * PAGE_SIZE, first, last) for gref, first, last in request.segments()
            )
        ]

    def data(self, request: Request) -> bytes:
        """The data of a write."""
        return b"".join(bytes(self.memory[place]) for place in self.places(request))

    def succeed(self, *requests: Request) -> None:
        """Answer as a backend does: each sector that is read holds the low byte of its number."""
        for request in requests:
            if request.op == READ:
                sector = request.sector
                for place in self.places(request):
                    for at in range(place.start, place.stop, 512):
                        self.memory[at : at + 512] = bytes([sector & 0xFF]) * 512
                        sector += 1
        self.answer(*((request.id, request.op, OKAY) for request in requests))


def attach(rings: list[Ring], disk: RingDisk, geometry: Geometry = GEOMETRY, *, indirect: int = 0) -> None:
    """Give several rings, which share their pages, to a disk."""
    links: list[Any] = [ring.link for ring in rings]
    block_rings = disk.attach(links, rings[0].abi, rings[0].pages.pool, geometry, indirect)
    for ring, block_ring in zip(rings, block_rings, strict=True):
        ring.block_ring = block_ring


def on_disk(sector: int, sectors: int) -> bytes:
    """The data that `succeed` returns for sectors."""
    return b"".join(bytes([number & 0xFF]) * 512 for number in range(sector, sector + sectors))


class Caller:
    """Notes how requests end; a read's data is copied, since it is only lent."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, int]] = []
        self.data: dict[str, bytes] = {}

    def done(self, name: str = "it") -> Any:
        """For a request without data."""
        return lambda error: self.ends.append((name, error))

    def read_done(self, name: str = "it") -> Any:
        """For a read."""

        def done(error: int, pieces: Sequence[memoryview]) -> None:
            self.ends.append((name, error))
            self.data[name] = b"".join(pieces)

        return done


async def sent(ring: Ring) -> list[Request]:
    """The requests made in this turn of the loop that reach the backend."""
    await asyncio.sleep(0)
    return ring.requests()
