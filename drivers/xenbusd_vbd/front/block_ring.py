"""The frontend's end of one ring: puts requests into free slots, and takes their responses.

Each request keeps a shadow until the backend has answered it, so that no request is lost with the ring.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence

from xenbusd.api import PAGE_SIZE, FrontLink, OtherendError, PagePool, Raw
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
"""Free slots at which waiting requests are sent, in the middle of a run of responses: the backend works on them while
we take the other responses."""

_WITH_DATA = (READ, WRITE)

Done = Callable[[int, Sequence[memoryview]], None]
"""Called with an errno and, for a read, its data in order: valid during the call only."""


class Shadow:
    """One ring request, until it is answered.

    Args:
        op: READ, WRITE, FLUSH_DISKCACHE, WRITE_BARRIER without data, or DISCARD.
        sector: the first one.
        sectors: how many there are.
        data: what to write; must not change until `done` is called.
        done: called once.
    """

    __slots__ = ("data", "done", "need", "op", "order", "page", "sector", "sectors")

    def __init__(self, op: int, sector: int, sectors: int, data: memoryview | None, done: Done) -> None:
        self.op = op
        self.sector = sector
        self.sectors = sectors
        self.data = data
        self.done = done
        need = (sectors + SECTORS_PER_PAGE - 1) // SECTORS_PER_PAGE if op in _WITH_DATA else 0
        self.need = need if need <= SEGMENTS_MAX else need + 1
        """Pages that it takes: those of its data and, if there are more than a slot describes, one for descriptors."""
        self.page = 0
        """The number of its first page in the pool, while it is in a ring."""
        self.order = 0
        """Its place among all requests of the disk."""


class BlockRing:
    """One ring.

    Args:
        link: connected.
        abi: its layout.
        pool: the disk's data pages.
        pump: called when slots have become free.
    """

    def __init__(self, link: FrontLink[Raw, Raw], abi: Abi, pool: PagePool, pump: Callable[[], None]) -> None:
        self._link = link
        self._ring = link.ring
        self._abi = abi
        self._pool = pool
        self._pump = pump
        self._counters = link.counters
        self._free = list(range(link.ring.size))
        self.in_ring: dict[int, Shadow] = {}
        """The requests without an answer, by the id that they have in the ring."""

    @property
    def room(self) -> int:
        """Slots that are free."""
        return len(self._free)

    def fill(self, waiting: deque[Shadow], most: int) -> None:
        """Put up to `most` of the waiting requests into the ring, in order, as far as there are slots and pages."""
        free, pool, in_ring = self._free, self._pool, self.in_ring
        put, pack, memory, grefs = self._ring.put, self._abi.pack_request, pool.memory, pool.grefs
        while waiting and free and most:
            shadow = waiting[0]
            need, page = shadow.need, 0
            if need:
                page = pool.take(need)
                if page < 0:
                    return
                shadow.page = page
                data = shadow.data
                if data is not None:
                    start = page * PAGE_SIZE
                    memory[start : start + len(data)] = data
            waiting.popleft()
            most -= 1
            id = free.pop()
            in_ring[id] = shadow
            if need > SEGMENTS_MAX:
                self._put_indirect(id, shadow)
            elif shadow.op == DISCARD:
                put(self._abi.pack_discard(id, shadow.sector, shadow.sectors))
            else:
                put(pack(shadow.op, id, shadow.sector, grefs[page : page + need], shadow.sectors))

    def _put_indirect(self, id: int, shadow: Shadow) -> None:
        """Put a read or write of more segments than a slot describes."""
        pool, last = self._pool, shadow.page + shadow.need - 1
        descriptors = pack_segments(pool.grefs[shadow.page : last], shadow.sectors)
        start = last * PAGE_SIZE
        pool.memory[start : start + len(descriptors)] = descriptors
        segments = shadow.need - 1
        self._ring.put(self._abi.pack_indirect(shadow.op, id, shadow.sector, segments, (pool.grefs[last],)))

    def publish(self) -> None:
        """Show the backend the requests put so far."""
        self._link.publish()

    def drain(self) -> bool:
        """Take a run of responses and finish their requests. Return whether there may be more.

        Raises:
            OtherendError: a response to no request of this ring, or with another operation.
            RingError: the backend's index cannot be right.
        """
        run, count = self._ring.take()
        parse, stride, in_ring = self._abi.parse_response, self._abi.slot_bytes, self.in_ring
        free, pool, counters = self._free, self._pool, self._counters
        for start in range(0, count * stride, stride):
            id, op, status = parse(run, start)
            shadow = in_ring.get(id)
            if shadow is None:
                raise OtherendError(f"a response to request {id}, which is not in the ring")
            if op != shadow.op:  # the request stays in `in_ring`, so that it is sent again through the next ring
                raise OtherendError(f"a response with operation {op} to request {id} with operation {shadow.op}")
            del in_ring[id]
            counters["requests"] += 1
            if status == OKAY:
                length = shadow.sectors * SECTOR
                counters["bytes"] += length
                place = shadow.page * PAGE_SIZE
                shadow.done(0, (pool.memory[place : place + length],) if op == READ else ())
            else:
                counters["errors"] += 1
                shadow.done(errno.EOPNOTSUPP if status == EOPNOTSUPP else errno.EIO, ())
            free.append(id)
            if shadow.need:
                pool.give(shadow.page, shadow.need)
            if len(free) >= CHUNK:
                self._pump()
        if count:
            self._pump()
        return count > 0
