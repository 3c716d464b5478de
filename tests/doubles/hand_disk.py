"""A vbd frontend driven by hand. It packs its own slots, straight from the table of rule T30, and not with the code
under test."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.ring.layout import Raw, RingFormat
from xenbusd.testing import HandRing, Peer

READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT = 0, 1, 2, 3, 5, 6
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
PAGE, SECTOR = 4096, 512

Answer = tuple[int, int, int]
"""id, op, status."""


@dataclass(frozen=True)
class Layout:
    """One row of T30's table: where a slot's fields are, in bytes."""

    name: str
    slot: int
    id: int
    sector: int
    segments: int
    response: int

    @property
    def ring(self) -> RingFormat[Raw, Raw]:
        """What the ring needs to know of it."""
        return RingFormat(self.slot, Raw, Raw)

    def rw(
        self, op: int, id: int, sector: int, segments: Sequence[tuple[int, int, int]] = (), *, count: int | None = None
    ) -> bytes:
        """A read, write, barrier or flush; each segment is (gref, first, last). `count` is what the slot claims."""
        slot = bytearray(self.slot)
        slot[0], slot[1] = op, len(segments) if count is None else count
        struct.pack_into("<Q", slot, self.id, id)
        struct.pack_into("<Q", slot, self.sector, sector)
        for number, (gref, first, last) in enumerate(segments):
            struct.pack_into("<IBB", slot, self.segments + 8 * number, gref, first, last)
        return bytes(slot)

    def discard(self, id: int, sector: int, sectors: int, *, flag: int = 0) -> bytes:
        """A discard."""
        slot = bytearray(self.slot)
        slot[0], slot[1] = DISCARD, flag
        struct.pack_into("<Q", slot, self.id, id)
        struct.pack_into("<Q", slot, self.sector, sector)
        struct.pack_into("<Q", slot, self.segments, sectors)
        return bytes(slot)

    def indirect(self, inner: int, id: int, sector: int, count: int, grefs: Sequence[int]) -> bytes:
        """An indirect request: `count` segments, described in the pages `grefs`."""
        slot = bytearray(self.slot)
        slot[0], slot[1] = INDIRECT, inner
        struct.pack_into("<H", slot, 2, count)
        struct.pack_into("<Q", slot, self.id, id)
        struct.pack_into("<Q", slot, self.sector, sector)
        for number, gref in enumerate(grefs):
            struct.pack_into("<I", slot, self.segments + 4 + 4 * number, gref)
        return bytes(slot)

    def answer(self, slot: bytes) -> Answer:
        """Take a response apart; what is behind it in its own size must be zero (XSA-216)."""
        id, op, status = struct.unpack_from("<QBxh", slot)
        assert not any(slot[9:10] + slot[12 : self.response])
        return id, op, status


X86_64 = Layout("x86_64-abi", slot=112, id=8, sector=16, segments=24, response=16)
X86_32 = Layout("x86_32-abi", slot=108, id=4, sector=12, segments=20, response=12)


class HandDisk:
    """The frontend's end of a connected vbd: a ring and some data pages.

    Args:
        peer: whose end.
        ring: connected.
        layout: of the ring's slots.
        pages: data pages to share.
    """

    def __init__(self, peer: Peer, ring: HandRing, layout: Layout, pages: int = 24) -> None:
        self.peer = peer
        self.ring = ring
        self.layout = layout
        self._share = peer.process.host.grants.share(DOM0, pages)
        self.grefs = self._share.grefs
        self.data = self._share.view
        self._last_id = 0x0123_4567_89AB_0000  # ids are the frontend's own, and 64 bits wide

    @classmethod
    async def connect(
        cls, peer: Peer, layout: Layout = X86_64, *, order: int | None = None, persistent: bool = False
    ) -> HandDisk:
        """Go through a frontend's handshake."""
        ring = await peer.connect(layout.ring, order=order, protocol=layout.name, feature_persistent=int(persistent))
        return cls(peer, ring, layout)

    def id(self) -> int:
        """A new request's number."""
        self._last_id += 1
        return self._last_id

    async def ask(self, *slots: bytes) -> dict[int, tuple[int, int]]:
        """Send requests together and wait for all answers: id -> (op, status)."""
        answers = [self.layout.answer(slot) for slot in await self.ring.ask(*slots)]
        assert len({id for id, _, _ in answers}) == len(slots), "one answer for each request"
        return {id: (op, status) for id, op, status in answers}

    async def status(self, slot: bytes, op: int) -> int:
        """Send one request; check that its answer has its id and its operation; return the status."""
        (id,) = struct.unpack_from("<Q", slot, self.layout.id)
        ((answer_id, (answer_op, status)),) = (await self.ask(slot)).items()
        assert (answer_id, answer_op) == (id, op)
        return status

    def segments(self, sectors: int, first_page: int = 0) -> list[tuple[int, int, int]]:
        """Segments for so many sectors, filling pages from the start."""
        count = -(-sectors // 8)
        return [(self.grefs[first_page + n], 0, min(7, sectors - 8 * n - 1)) for n in range(count)]

    def describe(self, segments: Sequence[tuple[int, int, int]], page: int) -> int:
        """Write the descriptors of segments into a data page; return its reference."""
        for number, (gref, first, last) in enumerate(segments):
            struct.pack_into("<IBB", self.data, page * PAGE + 8 * number, gref, first, last)
        return self.grefs[page]

    async def read(self, sector: int, sectors: int) -> bytes:
        """Read by one request."""
        slot = self.layout.rw(READ, self.id(), sector, self.segments(sectors))
        assert await self.status(slot, READ) == OKAY
        return bytes(self.data[: sectors * SECTOR])

    async def write(self, sector: int, data: bytes, *, op: int = WRITE) -> int:
        """Write by one request; return the status."""
        self.data[: len(data)] = data
        return await self.status(self.layout.rw(op, self.id(), sector, self.segments(len(data) // SECTOR)), op)

    def close(self) -> None:
        """Take back what was shared."""
        self.ring.close()
        self._share.unshare()

    async def leave(self) -> None:
        """Close the device from the frontend's side, in order."""
        await self.peer.write(State.CLOSING)
        await self.peer.until(State.CLOSING, State.CLOSED)
        await self.peer.write(State.CLOSED)
        await self.peer.until(State.CLOSED)
        self.close()
