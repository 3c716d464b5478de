"""The backend's end of a `BlockQueue`'s ring: what it sees of the requests, and how it answers them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.unit.vbd.ring_pair import FakeLink, RingPair
from xenbusd.ids import PAGE_SIZE
from xenbusd_vbd.protocol import OKAY, READ, Request
from xenbusd_vbd.queue import BlockQueue, Geometry, pool_pages

GEOMETRY = Geometry(sectors=1 << 24, read_only=False, can_flush=True, can_trim=True)
FIRST_GREF = 1000


class Ring(RingPair):
    """A ring that a queue is attached to, seen from the backend, with the data pages that go with it."""

    def __init__(self) -> None:
        super().__init__()
        pages = pool_pages(self.front.size)
        self.memory = bytearray(pages * PAGE_SIZE)
        self.link = FakeLink(self.front)
        self.pool: Any = SimpleNamespace(
            view=memoryview(self.memory), grefs=tuple(range(FIRST_GREF, FIRST_GREF + pages))
        )

    def attach(self, queue: BlockQueue, geometry: Geometry = GEOMETRY) -> None:
        """Give it to a queue."""
        link: Any = self.link
        queue.attach(link, self.abi, self.pool, geometry)

    def places(self, request: Request) -> list[slice]:
        """Where its segments are in `memory`."""
        return [
            slice(start + first * 512, start + (last + 1) * 512)
            for start, first, last in (
                ((gref - FIRST_GREF) * PAGE_SIZE, first, last) for gref, first, last in request.segments()
            )
        ]

    def data(self, request: Request) -> bytes:
        """What a write brings."""
        return b"".join(bytes(self.memory[place]) for place in self.places(request))

    def succeed(self, *requests: Request) -> None:
        """Do as a backend does: a read finds, in each sector, the low byte of the sector's number."""
        for request in requests:
            if request.op == READ:
                sector = request.sector
                for place in self.places(request):
                    for at in range(place.start, place.stop, 512):
                        self.memory[at : at + 512] = bytes([sector & 0xFF]) * 512
                        sector += 1
        self.answer(*((request.id, request.op, OKAY) for request in requests))


def on_disk(sector: int, sectors: int) -> bytes:
    """What `succeed` has on its disk."""
    return b"".join(bytes([number & 0xFF]) * 512 for number in range(sector, sector + sectors))
