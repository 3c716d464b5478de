"""A disk made of rings: the `Disk` of an NBD export. It splits requests, spreads them over rings, and outlives the
rings.

When the rings are lost (the backend was restarted) and others are attached, every request without an answer goes to the
new rings before anything newer does, as blkfront does after a migration.

All rings, one for each queue of the device, take from one queue of waiting requests, the ring with most room first.
No order is promised between two requests under way, so a flush may go through any ring: the writes that it
covers were answered before.

Decisions: D31, D32.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter

from xenbusd.api import PAGE_SIZE, FrontLink, PagePool, Raw
from xenbusd_vbd.front.block_ring import CHUNK, BlockRing, Done, Shadow
from xenbusd_vbd.front.geometry import Geometry
from xenbusd_vbd.front.pool import largest_request
from xenbusd_vbd.protocol import (
    DISCARD,
    FLUSH_DISKCACHE,
    READ,
    SECTOR,
    SECTORS_PER_PAGE,
    SEGMENTS_MAX,
    WRITE,
    WRITE_BARRIER,
    Abi,
)

DISCARD_BYTES_MAX = 1 << 30
"""The largest single discard that we send."""

PREFERRED_MAX = 1 << 20
"""The largest physical sector, in bytes, that is accepted from a backend."""


class RingDisk:
    """A disk.

    Args:
        geometry: as first published; kept while no rings are attached.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._loop = asyncio.get_running_loop()
        self._rings: list[BlockRing] = []
        self._waiting: deque[Shadow] = deque()
        self._most_sectors = SEGMENTS_MAX * SECTORS_PER_PAGE
        self._made = 0
        self._pumping = False
        self._settling = False
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
        """Whether the backend has a way to flush."""
        return self._geometry.flush_op is not None

    @property
    def can_trim(self) -> bool:
        """Whether the backend takes discards."""
        return self._geometry.can_trim

    @property
    def block_size(self) -> int:
        """The backend's sector size in bytes: requests keep to it."""
        return self._geometry.sector_bytes

    @property
    def preferred_size(self) -> int:
        """Bytes: a page, or the disk's physical sector if that is larger."""
        physical = self._geometry.physical_sector_bytes
        return physical if PAGE_SIZE < physical <= PREFERRED_MAX and not physical & (physical - 1) else PAGE_SIZE

    @property
    def kind(self) -> str:
        """The word for it in messages: "disk" or "CD-ROM"."""
        return "CD-ROM" if self._geometry.is_cdrom else "disk"

    def read(self, offset: int, length: int, done: Done) -> None:
        """Read `length` bytes; `done` gets an errno and the data's pieces, valid during the call only."""
        self._send(Shadow(READ, offset // SECTOR, length // SECTOR, None, done))

    def write(self, offset: int, data: memoryview, fua: bool, done: Callable[[int], None]) -> None:
        """Write `data`, which must not change until `done` is called; with `fua`, flush before that."""

        def written(error: int, _: Sequence[memoryview]) -> None:
            if fua and not error:
                self.flush(done)
            else:
                done(error)

        self._send(Shadow(WRITE, offset // SECTOR, len(data) // SECTOR, data, written))

    def flush(self, done: Callable[[int], None]) -> None:
        """Put every write that is done by now on stable storage, then call `done` with an errno."""
        op = FLUSH_DISKCACHE if self._geometry.flush_op is None else self._geometry.flush_op
        self._send(Shadow(op, 0, 0, None, lambda error, _: done(error)))

    def trim(self, offset: int, length: int, done: Callable[[int], None]) -> None:
        """Discard the granules that lie entirely within a range."""
        unit, shift = self._geometry.discard_granularity, self._geometry.discard_alignment
        end = (offset + length - shift) // unit * unit + shift
        offset = -((shift - offset) // unit) * unit + shift
        if offset >= end:
            done(0)
            return
        gather = _Gather(done)
        for at in range(offset, end, DISCARD_BYTES_MAX):
            size = min(DISCARD_BYTES_MAX, end - at)
            self._send(Shadow(DISCARD, at // SECTOR, size // SECTOR, None, gather.part()))
        gather.close()

    def resize(self, sectors: int) -> None:
        """Record that the disk has another size."""
        self._geometry = replace(self._geometry, sectors=sectors)

    # -- the rings -------------------------------------------------------------------------------------------------

    def attach(
        self,
        links: Sequence[FrontLink[Raw, Raw]],
        abi: Abi,
        pool: PagePool,
        geometry: Geometry,
        indirect_segments: int = 0,
    ) -> list[BlockRing]:
        """Use connected rings. The first requests that they get are those that earlier rings left without an answer.

        Args:
            links: one for each ring.
            abi: their layout.
            pool: pages shared with the backend.
            geometry: as published now.
            indirect_segments: the most that the backend takes in one request; 0: it takes no indirect requests.

        Returns:
            A ring for each link, whose `drain` the link is to be started with.
        """
        self._geometry = geometry
        self._most_sectors = largest_request(pool.size, indirect_segments) * SECTORS_PER_PAGE
        waiting, self._waiting = self._waiting, deque()
        for shadow in waiting:  # made for another backend, which may have had other abilities
            if shadow.op in (FLUSH_DISKCACHE, WRITE_BARRIER):
                shadow.op = shadow.op if geometry.flush_op is None else geometry.flush_op
            if shadow.sectors <= self._most_sectors or shadow.op == DISCARD:
                self._waiting.append(shadow)
            else:
                self._split(shadow)
        self._rings = [BlockRing(link, abi, pool, self._pump) for link in links]
        self._pump()
        return self._rings

    def detach(self) -> None:
        """Let go of the rings. Their requests without an answer go back to the head of the queue. Idempotent."""
        left = [shadow for ring in self._rings for shadow in ring.in_ring.values()]
        self._waiting.extendleft(sorted(left, key=attrgetter("order"), reverse=True))
        self._rings = []
        self._idle.set()

    def die(self) -> None:
        """Fail all requests, now and from now on, with ENODEV: the device is gone for good."""
        self.detach()
        self._dead = True
        while self._waiting:
            self._waiting.popleft().done(errno.ENODEV, ())

    async def settle(self, timeout_s: float) -> bool:
        """Wait until no request is in the rings or waits for them. Return False if the time runs out first."""
        self._settling = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._pumping or any(ring.in_ring for ring in self._rings):
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _send(self, shadow: Shadow) -> None:
        if self._dead:
            shadow.done(errno.ENODEV, ())
            return
        self._made += 1
        shadow.order = self._made
        if shadow.sectors <= self._most_sectors or shadow.op == DISCARD:
            self._waiting.append(shadow)
        else:
            self._split(shadow)
        if not self._pumping and self._rings:
            self._pumping = True  # once for all requests of this turn of the loop
            self._loop.call_soon(self._pump)

    def _split(self, shadow: Shadow) -> None:
        """Append a read or write that is too large for a ring to the queue, in parts."""
        most = self._most_sectors
        if shadow.op == READ:
            whole = memoryview(bytearray(shadow.sectors * SECTOR))
            gather = _Gather(lambda error: shadow.done(error, () if error else (whole,)))
        else:
            whole = None
            gather = _Gather(lambda error: shadow.done(error, ()))
        for at in range(0, shadow.sectors, most):
            sectors = min(most, shadow.sectors - at)
            place = slice(at * SECTOR, (at + sectors) * SECTOR)
            data = None if shadow.data is None else shadow.data[place]
            done = gather.part(None if whole is None else whole[place])
            part = Shadow(shadow.op, shadow.sector + at, sectors, data, done)
            part.order = shadow.order
            self._waiting.append(part)
        gather.close()

    def _pump(self) -> None:
        """Put waiting requests into free slots, then publish them together."""
        self._pumping = False
        waiting, rings = self._waiting, self._rings
        if waiting:
            if len(rings) == 1:
                rings[0].fill(waiting, len(waiting))
                rings[0].publish()
            elif rings:
                self._spread()
        if self._settling and not any(ring.in_ring for ring in rings):
            self._idle.set()

    def _spread(self) -> None:
        """Fill several rings, a chunk at a time, each time the one with most room."""
        waiting, rings = self._waiting, self._rings
        left = len(waiting) + 1
        while waiting and len(waiting) < left:
            left = len(waiting)
            max(rings, key=attrgetter("room")).fill(waiting, CHUNK)
        for ring in rings:
            ring.publish()


class _Gather:
    """Counts the parts of a split request. When all are done, it ends with the first error among them, or 0."""

    __slots__ = ("_done", "_error", "_left")

    def __init__(self, done: Callable[[int], None]) -> None:
        self._done = done
        self._error = 0
        self._left = 1

    def part(self, target: memoryview | None = None) -> Done:
        """Count one more part. Return its callback, which copies a read's data to `target`."""
        self._left += 1

        def done(error: int, pieces: Sequence[memoryview]) -> None:
            if target is not None:
                at = 0
                for piece in pieces:
                    target[at : at + len(piece)] = piece
                    at += len(piece)
            self._error = self._error or error
            self.close()

        return done

    def close(self) -> None:
        """Record that one part is done; or, called by the splitter, that all parts have been made."""
        self._left -= 1
        if not self._left:
            self._done(self._error)
