"""The frontend's data path: a disk made of a ring. Splits requests, keeps a shadow of each, and survives its ring.

Each slot of the ring has eleven data pages of its own, shared once with the backend and used again and again, so that
the backend may keep them mapped (persistent grants) and a slot's data is one contiguous piece of memory.

A request's shadow stays until the backend has answered it. When a ring is lost (the backend was restarted) and another
one is attached, every shadow goes to the new ring before anything new does, as blkfront does after a migration.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from xenbusd.api import PAGE_SIZE, FrontLink, OtherendError, Raw, Share
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    REQUEST_BYTES_MAX,
    SECTOR,
    SEGMENTS_MAX,
    WRITE,
    Abi,
)

DISCARD_BYTES_MAX = 1 << 30
"""The largest single discard that we send."""


@dataclass(frozen=True)
class Geometry:
    """What the backend has published of its disk."""

    sectors: int
    read_only: bool
    can_flush: bool
    can_trim: bool
    physical_sector_bytes: int = SECTOR


CHUNK = 8
"""Slots that become free before they are used again: the backend goes on while we take the other responses."""


class Shadow:
    """One ring request, from its making to its answer.

    Args:
        op: READ, WRITE, FLUSH_DISKCACHE or DISCARD.
        sector: where it begins.
        sectors: how long it is.
        data: what to write; unchanged until it is answered.
        done: called with an errno and, for a read, its data: valid during the call only.
    """

    __slots__ = ("data", "done", "op", "order", "sector", "sectors")

    def __init__(
        self,
        op: int,
        sector: int,
        sectors: int,
        data: memoryview | None,
        done: Callable[[int, memoryview | None], None],
    ) -> None:
        self.op = op
        self.sector = sector
        self.sectors = sectors
        self.data = data
        self.done = done
        self.order = 0


class BlockQueue:
    """A disk; the `Disk` of an NBD export.

    Args:
        geometry: the disk, as first published; kept while no ring is attached.
    """

    block_size = SECTOR
    preferred_size = PAGE_SIZE
    max_request = REQUEST_BYTES_MAX

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._loop = asyncio.get_running_loop()
        self._link: FrontLink[Raw, Raw] | None = None
        self._waiting: deque[Shadow] = deque()
        self._in_ring: dict[int, Shadow] = {}
        self._free: list[int] = []
        self._issued = 0
        self._pumping = False
        self._idle = asyncio.Event()
        self._dead = False

    # -- the disk --------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Capacity in bytes."""
        return self._geometry.sectors * SECTOR

    @property
    def read_only(self) -> bool:
        """Whether writes and trims are refused."""
        return self._geometry.read_only

    @property
    def can_flush(self) -> bool:
        """Whether the backend takes flushes."""
        return self._geometry.can_flush

    @property
    def can_trim(self) -> bool:
        """Whether the backend takes discards."""
        return self._geometry.can_trim

    def read(self, offset: int, length: int, done: Callable[[int, Sequence[memoryview]], None]) -> None:
        """Read `length` bytes; `done` gets an errno and the data's pieces, valid during the call only."""
        if length <= REQUEST_BYTES_MAX:

            def single(error: int, data: memoryview | None) -> None:
                done(error, [data] if data is not None else [])

            self._send(Shadow(READ, offset // SECTOR, length // SECTOR, None, single))
            return
        whole = memoryview(bytearray(length))
        gather = _Gather(lambda error: done(error, [] if error else [whole]))
        for at in range(0, length, REQUEST_BYTES_MAX):
            size = min(REQUEST_BYTES_MAX, length - at)
            self._send(Shadow(READ, (offset + at) // SECTOR, size // SECTOR, None, gather.part(whole[at : at + size])))
        gather.close()

    def write(self, offset: int, data: memoryview, fua: bool, done: Callable[[int], None]) -> None:
        """Write `data`, which stays unchanged until `done`; with `fua`, flush before `done`."""
        finish = done
        if fua:

            def flush_after(error: int) -> None:
                if error:
                    done(error)
                else:
                    self.flush(done)

            finish = flush_after
        gather = _Gather(finish)
        for at in range(0, len(data), REQUEST_BYTES_MAX):
            piece = data[at : at + REQUEST_BYTES_MAX]
            self._send(Shadow(WRITE, (offset + at) // SECTOR, len(piece) // SECTOR, piece, gather.part()))
        gather.close()

    def flush(self, done: Callable[[int], None]) -> None:
        """Put every write that is done by now on stable storage."""
        self._send(Shadow(FLUSH_DISKCACHE, 0, 0, None, lambda error, _: done(error)))

    def trim(self, offset: int, length: int, done: Callable[[int], None]) -> None:
        """Forget a range's contents."""
        gather = _Gather(done)
        for at in range(0, length, DISCARD_BYTES_MAX):
            size = min(DISCARD_BYTES_MAX, length - at)
            self._send(Shadow(DISCARD, (offset + at) // SECTOR, size // SECTOR, None, gather.part()))
        gather.close()

    # -- the ring --------------------------------------------------------------------------------------------------

    def attach(self, link: FrontLink[Raw, Raw], abi: Abi, pool: Share, geometry: Geometry) -> None:
        """Use a connected ring: first for every request that an earlier one left unanswered.

        Args:
            link: the ring.
            abi: its layout.
            pool: `pool_pages(link.ring.size)` pages shared with the backend.
            geometry: as published now.
        """
        self._link, self._abi, self._geometry = link, abi, geometry
        self._ring = link.ring
        size = SEGMENTS_MAX * PAGE_SIZE
        self._buffers = [pool.view[id * size : (id + 1) * size] for id in range(link.ring.size)]
        self._grefs = [pool.grefs[id * SEGMENTS_MAX : (id + 1) * SEGMENTS_MAX] for id in range(link.ring.size)]
        self._free = list(range(link.ring.size))
        self._counters = link.counters
        self._pump()

    def detach(self) -> None:
        """Let go of the ring; what it left unanswered goes back to the head of the line. Idempotent."""
        if self._link is None:
            return
        self._link = None
        self._waiting.extendleft(sorted(self._in_ring.values(), key=attrgetter("order"), reverse=True))
        self._in_ring.clear()
        self._free.clear()
        self._buffers.clear()
        self._idle.set()

    def die(self) -> None:
        """The device is gone for good: fail what is left, and everything from now on."""
        self.detach()
        self._dead = True
        while self._waiting:
            self._waiting.popleft().done(errno.ENODEV, None)

    async def settle(self, timeout_s: float) -> bool:
        """Wait until nothing is in the ring or waiting for it; False if the time was up first."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._in_ring or self._pumping:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _send(self, shadow: Shadow) -> None:
        if self._dead:
            shadow.done(errno.ENODEV, None)
            return
        self._waiting.append(shadow)
        if not self._pumping and self._free:
            self._pumping = True  # once for all requests of this turn of the loop
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Put waiting requests into free slots, then publish them together."""
        self._pumping = False
        link, waiting, free = self._link, self._waiting, self._free
        if link is None:
            return
        put, abi = self._ring.put, self._abi
        while waiting and free:
            shadow = waiting.popleft()
            id = free.pop()
            self._in_ring[id] = shadow
            self._issued += 1
            shadow.order = self._issued
            if shadow.op == DISCARD:
                put(abi.pack_discard(id, shadow.sector, shadow.sectors))
                continue
            if shadow.data is not None:
                self._buffers[id][: len(shadow.data)] = shadow.data
            pages = (shadow.sectors + 7) // 8
            put(abi.pack_request(shadow.op, id, shadow.sector, self._grefs[id][:pages], shadow.sectors))
        link.publish()

    def drain(self) -> bool:
        """Take a run of responses and finish their requests. Return whether there may be more."""
        run, count = self._ring.take()
        parse, stride, in_ring = self._abi.parse_response, self._abi.slot_bytes, self._in_ring
        for start in range(0, count * stride, stride):
            id, op, status = parse(run, start)
            shadow = in_ring.get(id)
            if shadow is None:
                raise OtherendError(f"a response to request {id}, which is not in the ring")
            if op != shadow.op:  # it stays in the ring, so that the next one gets it
                raise OtherendError(f"a response with operation {op} to request {id} with operation {shadow.op}")
            del in_ring[id]
            self._counters["requests"] += 1
            if status == OKAY:
                length = shadow.sectors * SECTOR
                self._counters["bytes"] += length
                shadow.done(0, self._buffers[id][:length] if op == READ else None)
            else:
                self._counters["errors"] += 1
                shadow.done(errno.EOPNOTSUPP if status == EOPNOTSUPP else errno.EIO, None)
            self._free.append(id)
            if len(self._free) >= CHUNK:
                self._pump()
        if count:
            self._pump()
            if not in_ring:
                self._idle.set()
        return count > 0


class _Gather:
    """Counts the parts of a split request, and is done with the first error, or 0, when all are."""

    __slots__ = ("_done", "_error", "_left")

    def __init__(self, done: Callable[[int], None]) -> None:
        self._done = done
        self._error = 0
        self._left = 1

    def part(self, target: memoryview | None = None) -> Callable[[int, memoryview | None], None]:
        """One more part; a read's data is copied to `target`."""
        self._left += 1

        def done(error: int, data: memoryview | None) -> None:
            if target is not None and data is not None:
                target[:] = data
            self._error = self._error or error
            self.close()

        return done

    def close(self) -> None:
        """One part is done; or, called by the splitter, all have been made."""
        self._left -= 1
        if not self._left:
            self._done(self._error)


def pool_pages(slots: int) -> int:
    """Data pages that a ring of `slots` slots needs."""
    return slots * SEGMENTS_MAX
