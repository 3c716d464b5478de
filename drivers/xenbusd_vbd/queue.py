"""The frontend's end of one ring: requests into free slots, and their answers.

Each request keeps a shadow until the backend has answered it, so that a lost ring loses none.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence

from xenbusd.api import FrontLink, OtherendError, Raw
from xenbusd_vbd.pool import Pool
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    OKAY,
    READ,
    SECTOR,
    SECTORS_PER_PAGE,
    SEGMENTS_MAX,
    WRITE,
    Abi,
    pack_segments,
)

CHUNK = 8
"""Slots that become free before they are used again: the backend goes on while we take the other responses."""

Done = Callable[[int, Sequence[memoryview]], None]
"""Called with an errno and, for a read, its data in order: valid during the call only."""


class Shadow:
    """One ring request, from its making to its answer.

    Args:
        op: READ, WRITE, FLUSH_DISKCACHE, WRITE_BARRIER without data, or DISCARD.
        sector: where it begins.
        sectors: how long it is.
        data: what to write; unchanged until it is answered.
        done: called once.
    """

    __slots__ = ("data", "done", "need", "op", "order", "pages", "sector", "sectors")

    def __init__(self, op: int, sector: int, sectors: int, data: memoryview | None, done: Done) -> None:
        self.op = op
        self.sector = sector
        self.sectors = sectors
        self.data = data
        self.done = done
        need = (sectors + SECTORS_PER_PAGE - 1) // SECTORS_PER_PAGE if op == READ or op == WRITE else 0
        self.need = need if need <= SEGMENTS_MAX else need + 1
        """Pages that it takes: those of its data, and one more for the descriptors of many."""
        self.pages: list[int] = []
        """Their numbers in the pool, while it is in a ring: data first."""
        self.order = 0
        """Its place among all requests of the disk."""


class BlockQueue:
    """One ring.

    Args:
        link: connected.
        abi: its layout.
        pool: the disk's data pages.
        pump: called when slots have become free.
    """

    def __init__(self, link: FrontLink[Raw, Raw], abi: Abi, pool: Pool, pump: Callable[[], None]) -> None:
        self._link = link
        self._ring = link.ring
        self._abi = abi
        self._pool = pool
        self._pump = pump
        self._counters = link.counters
        self._free = list(range(link.ring.size))
        self.in_ring: dict[int, Shadow] = {}
        """What is not answered yet, by the id that the backend knows it by."""

    @property
    def room(self) -> int:
        """Slots that are free."""
        return len(self._free)

    def fill(self, waiting: deque[Shadow], most: int) -> None:
        """Put up to `most` of the waiting requests into the ring, in order, as far as there are slots and pages."""
        free, pages, in_ring = self._free, self._pool.free, self.in_ring
        put, pack, views, grefs = self._ring.put, self._abi.pack_request, self._pool.views, self._pool.grefs
        while waiting and free and most:
            shadow = waiting[0]
            need = shadow.need
            if need > len(pages):
                return
            waiting.popleft()
            most -= 1
            id = free.pop()
            in_ring[id] = shadow
            if need == 1:  # the commonest by far
                page = pages.pop()
                shadow.pages = [page]
                data = shadow.data
                if data is not None:
                    views[page][: len(data)] = data
                put(pack(shadow.op, id, shadow.sector, (grefs[page],), shadow.sectors))
            elif need:
                self._put_pages(id, shadow)
            elif shadow.op == DISCARD:
                put(self._abi.pack_discard(id, shadow.sector, shadow.sectors))
            else:
                put(pack(shadow.op, id, 0, (), 0))

    def _put_pages(self, id: int, shadow: Shadow) -> None:
        """Put a read or write of several pages: as an indirect request if they are too many for a slot."""
        pool, abi, need = self._pool, self._abi, shadow.need
        shadow.pages = pool.free[-need:]
        del pool.free[-need:]
        count = (shadow.sectors + SECTORS_PER_PAGE - 1) // SECTORS_PER_PAGE
        numbers = shadow.pages[:count]
        data = shadow.data
        if data is not None:
            at = 0
            for number in numbers:
                view = pool.views[number]
                piece = data[at : at + len(view)]
                view[: len(piece)] = piece
                at += len(view)
        grefs = tuple([pool.grefs[number] for number in numbers])
        if count == need:
            self._ring.put(abi.pack_request(shadow.op, id, shadow.sector, grefs, shadow.sectors))
            return
        descriptors = pack_segments(grefs, shadow.sectors)
        last = shadow.pages[-1]
        pool.views[last][: len(descriptors)] = descriptors
        self._ring.put(abi.pack_indirect(shadow.op, id, shadow.sector, count, (pool.grefs[last],)))

    def publish(self) -> None:
        """Show what was put to the backend."""
        self._link.publish()

    def drain(self) -> bool:
        """Take a run of responses and finish their requests. Return whether there may be more.

        Raises:
            OtherendError, RingError: a response that cannot be.
        """
        run, count = self._ring.take()
        parse, stride, in_ring = self._abi.parse_response, self._abi.slot_bytes, self.in_ring
        free, pages, counters = self._free, self._pool.free, self._counters
        for start in range(0, count * stride, stride):
            id, op, status = parse(run, start)
            shadow = in_ring.get(id)
            if shadow is None:
                raise OtherendError(f"a response to request {id}, which is not in the ring")
            if op != shadow.op:  # it stays in the ring, so that the next one gets it
                raise OtherendError(f"a response with operation {op} to request {id} with operation {shadow.op}")
            del in_ring[id]
            counters["requests"] += 1
            if status == OKAY:
                counters["bytes"] += shadow.sectors * SECTOR
                shadow.done(0, self._pieces(shadow) if op == READ else ())
            else:
                counters["errors"] += 1
                shadow.done(errno.EOPNOTSUPP if status == EOPNOTSUPP else errno.EIO, ())
            free.append(id)
            pages += shadow.pages
            if len(free) >= CHUNK:
                self._pump()
        if count:
            self._pump()
        return count > 0

    def _pieces(self, shadow: Shadow) -> list[memoryview]:
        """A read's data, where it lies."""
        views = self._pool.views
        count, rest = divmod(shadow.sectors, SECTORS_PER_PAGE)
        pieces = [views[number] for number in shadow.pages[:count]]
        if rest:
            pieces.append(views[shadow.pages[count]][: rest * SECTOR])
        return pieces
