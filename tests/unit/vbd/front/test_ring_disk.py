"""The disk that is made of rings: what it sends, what it believes, and what becomes of requests without a ring."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.doubles.backend_by_hand import GEOMETRY, Pages, Ring, attach, on_disk
from xenbusd.errors import OtherendError, RingError
from xenbusd_vbd.front.geometry import Geometry
from xenbusd_vbd.front.ring_disk import DISCARD_BYTES_MAX, RingDisk
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    SEGMENTS_MAX,
    WRITE,
    WRITE_BARRIER,
    Request,
)

SLOTS = 32
MOST = 45056
"""Bytes of the largest request."""


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
    """Who asks."""
    return Caller()


async def sent(ring: Ring) -> list[Request]:
    """What reaches the backend of the requests made in this turn of the loop."""
    await asyncio.sleep(0)
    return ring.requests()


# -- one request -------------------------------------------------------------------------------------------------------


async def test_a_read(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """13 sectors are one request for a whole page and five sectors of the next; the data reaches the caller."""
    disk.read(100 * 512, 13 * 512, caller.read_done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.firsts, request.lasts) == (READ, 100, (0, 0), (7, 4))
    ring.succeed(request)
    assert ring.drain()
    assert caller.ends == [("it", 0)]
    assert caller.data["it"] == on_disk(100, 13)
    assert not ring.drain()


async def test_a_write(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """The data is in the pages that the request names."""
    data = on_disk(7, 13)
    disk.write(100 * 512, memoryview(data), False, caller.done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.sectors) == (WRITE, 100, 13)
    assert ring.data(request) == data
    assert caller.ends == []
    ring.succeed(request)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_a_flush(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A flush has no segments."""
    disk.flush(caller.done())
    [request] = await sent(ring)
    assert (request.op, request.grefs) == (FLUSH_DISKCACHE, ())
    ring.succeed(request)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_a_trim(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A trim is a discard, never a secure one."""
    disk.trim(8 * 512, 16 * 512, caller.done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.sectors, request.flag) == (DISCARD, 8, 16, 0)
    ring.succeed(request)
    ring.drain()
    assert caller.ends == [("it", 0)]


@pytest.mark.parametrize(("status", "code"), [(ERROR, errno.EIO), (EOPNOTSUPP, errno.EOPNOTSUPP), (77, errno.EIO)])
async def test_a_failure(ring: Ring, disk: RingDisk, caller: Caller, status: int, code: int) -> None:
    """Each status but OKAY, known or not, is an errno; a read that failed brings no data."""
    disk.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, READ, status))
    ring.drain()
    assert caller.ends == [("it", code)]
    assert caller.data["it"] == b""
    assert ring.link.counters == {"requests": 1, "errors": 1}


async def test_what_is_counted(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Requests, and the bytes of those that succeeded."""
    disk.read(0, 1024, caller.read_done())
    disk.flush(caller.done())
    ring.succeed(*await sent(ring))
    ring.drain()
    assert ring.link.counters == {"requests": 2, "bytes": 1024}


# -- splitting ---------------------------------------------------------------------------------------------------------


async def test_the_largest_request_is_not_split(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """44 KiB fill all eleven segments."""
    disk.read(0, MOST, caller.read_done())
    [request] = await sent(ring)
    assert (len(request.grefs), request.sectors) == (SEGMENTS_MAX, 88)


async def test_a_long_read_is_put_together(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Its parts come back in any order, and the caller hears once, with everything in its place."""
    disk.read(0, 2 * MOST + 512, caller.read_done())
    parts = await sent(ring)
    assert [(part.sector, part.sectors) for part in parts] == [(0, 88), (88, 88), (176, 1)]
    for part in (parts[2], parts[0]):
        ring.succeed(part)
        ring.drain()
    assert caller.ends == []
    ring.succeed(parts[1])
    ring.drain()
    assert caller.ends == [("it", 0)]
    assert caller.data["it"] == on_disk(0, 177)


async def test_a_long_write_is_taken_apart(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Each part carries its piece of the data to its place on the disk."""
    data = on_disk(3, 177)
    disk.write(512, memoryview(data), False, caller.done())
    parts = await sent(ring)
    assert [(part.sector, part.sectors) for part in parts] == [(1, 88), (89, 88), (177, 1)]
    assert b"".join(ring.data(part) for part in parts) == data
    ring.succeed(*parts)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_a_long_trim_is_split(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """No single discard is longer than 1 GiB."""
    disk.trim(0, 2 * DISCARD_BYTES_MAX + 4096, caller.done())
    parts = await sent(ring)
    step = (1 << 30) // 512
    assert [(part.sector, part.sectors) for part in parts] == [(0, step), (step, step), (2 * step, 8)]
    ring.succeed(*parts)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_the_first_error_of_a_split_request_counts(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """The caller hears of it when all parts are answered, and gets none of a read's data."""
    disk.read(0, 3 * MOST, caller.read_done())
    parts = await sent(ring)
    ring.succeed(parts[0])
    ring.answer((parts[1].id, READ, EOPNOTSUPP), (parts[2].id, READ, ERROR))
    ring.drain()
    assert caller.ends == [("it", errno.EOPNOTSUPP)]
    assert caller.data["it"] == b""


async def test_fua_is_a_flush_after_all_parts(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """The flush goes out once every part is written, and the caller hears once the flush is done."""
    disk.write(0, memoryview(bytes(MOST + 512)), True, caller.done())
    first, second = await sent(ring)
    ring.succeed(first)
    ring.drain()
    assert await sent(ring) == []
    ring.succeed(second)
    ring.drain()
    [flush] = await sent(ring)
    assert flush.op == FLUSH_DISKCACHE
    assert caller.ends == []
    ring.answer((flush.id, FLUSH_DISKCACHE, ERROR))
    ring.drain()
    assert caller.ends == [("it", errno.EIO)]


async def test_fua_after_a_failure_flushes_nothing(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A write that failed is reported as it is."""
    disk.write(0, memoryview(bytes(512)), True, caller.done())
    [write] = await sent(ring)
    ring.answer((write.id, WRITE, ERROR))
    ring.drain()
    assert caller.ends == [("it", errno.EIO)]
    assert await sent(ring) == []


# -- indirect requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pages", "offered", "most"), [(352, 256, 44), (2048, 256, 256), (2048, 32, 32), (4096, 999, 256)]
)
async def test_the_largest_indirect_request(caller: Caller, pages: int, offered: int, most: int) -> None:
    """As many segments as the backend takes and we do, but eight such requests always find pages."""
    ring, disk = Ring(Pages(pages)), RingDisk(GEOMETRY)
    ring.attach(disk, indirect=offered)
    assert disk.max_request == most * 4096
    disk.read(0, (most + 1) * 4096, caller.read_done())
    assert [(request.sector, len(request.grefs)) for request in await sent(ring)] == [(0, most), (most * 8, 1)]


@pytest.mark.parametrize("sectors", [89, 96, 97, 8 * 44 - 1, 8 * 44])
async def test_an_indirect_read_and_write(ring: Ring, caller: Caller, sectors: int) -> None:
    """More segments than a slot holds are described in a page of their own; the data gets to its place both ways, and
    the response has the inner operation (T31)."""
    disk, data = RingDisk(GEOMETRY), on_disk(5, sectors)
    ring.attach(disk, indirect=256)
    disk.write(512, memoryview(data), False, caller.done("write"))
    disk.read(1024, sectors * 512, caller.read_done("read"))
    write, read = await sent(ring)
    assert (write.op, write.sector, write.sectors) == (WRITE, 1, sectors)
    assert (read.op, read.sector, read.sectors) == (READ, 2, sectors)
    assert ring.data(write) == data
    assert not set(write.grefs) & set(read.grefs)
    ring.succeed(write, read)
    ring.drain()
    assert caller.ends == [("write", 0), ("read", 0)]
    assert caller.data["read"] == on_disk(2, sectors)
    assert all(ring.pages.pool.free)


async def test_large_and_small_requests_share_the_pages(ring: Ring, caller: Caller) -> None:
    """What finds no pages waits, and what comes after it waits behind it; each has its own, and all come back."""
    disk = RingDisk(GEOMETRY)
    ring.attach(disk, indirect=256)
    for number in range(12):
        disk.read(number << 20, 44 * 4096, caller.read_done(str(number)))
        disk.read((number << 20) + (1 << 19), 512, caller.read_done(f"{number}+"))
    seen: list[Request] = []
    while len(seen) < 24:
        batch = await sent(ring)
        grefs = [gref for request in batch for gref in request.grefs]
        assert batch
        assert len(set(grefs)) == len(grefs)
        ring.succeed(*batch)
        ring.drain()
        seen += batch
    assert [request.sector for request in seen] == sorted(request.sector for request in seen)
    assert [error for _, error in caller.ends] == [0] * 24
    assert all(caller.data[str(number)] == on_disk(number << 11, 352) for number in range(12))
    assert all(ring.pages.pool.free)


async def test_a_large_request_left_for_a_backend_that_takes_none_such(ring: Ring, caller: Caller) -> None:
    """It is split for the new ring; its caller hears once, with all of its data."""
    disk, data = RingDisk(GEOMETRY), on_disk(0, 352)
    ring.attach(disk, indirect=256)
    disk.read(0, 44 * 4096, caller.read_done("read"))
    disk.write(1 << 20, memoryview(data), False, caller.done("write"))
    disk.flush(caller.done("flush"))
    assert len(await sent(ring)) == 3
    disk.detach()
    next_ring = Ring()
    next_ring.attach(disk, replace(GEOMETRY, flush_op=WRITE_BARRIER))
    again = next_ring.requests()
    assert [request.op for request in again] == [READ] * 4 + [WRITE] * 4 + [WRITE_BARRIER]
    assert b"".join(next_ring.data(request) for request in again[4:8]) == data
    next_ring.succeed(*again)
    next_ring.drain()
    assert caller.ends == [("read", 0), ("write", 0), ("flush", 0)]
    assert caller.data["read"] == data


# -- several queues ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def rings() -> list[Ring]:
    """Four rings with one pool of pages."""
    pages = Pages()
    return [Ring(pages) for _ in range(4)]


async def test_the_queues_share_the_load(rings: list[Ring], caller: Caller) -> None:
    """Single requests go round, a burst is spread in chunks, and what does not fit waits for whichever has room."""
    disk = RingDisk(GEOMETRY)
    attach(rings, disk)
    for number in range(4):
        disk.read(number * 512, 512, caller.read_done())
        await asyncio.sleep(0)
    under_way = [ring.requests() for ring in rings]
    assert [len(requests) for requests in under_way] == [1] * 4
    for number in range(4 * SLOTS):
        disk.read(number * 512, 512, caller.read_done())
    await asyncio.sleep(0)
    burst = [ring.requests() for ring in rings]
    assert [len(requests) for requests in burst] == [SLOTS - 1] * 4
    rings[2].succeed(*under_way[2], *burst[2])
    rings[2].drain()
    assert [len(ring.requests()) for ring in rings] == [0, 0, 4, 0]
    assert len(caller.ends) == SLOTS


async def test_one_queue_s_answer_is_no_other_s(rings: list[Ring], caller: Caller) -> None:
    """Each ring has ids of its own; an answer through the wrong one is no answer to anything."""
    disk = RingDisk(GEOMETRY)
    attach(rings, disk)
    disk.read(0, 512, caller.read_done())
    await asyncio.sleep(0)
    [(owner, request)] = [(ring, request) for ring in rings for request in ring.requests()]
    other = next(ring for ring in rings if ring is not owner)
    disk.read(0, 512, caller.read_done())
    await asyncio.sleep(0)
    [later] = [request for ring in rings for request in ring.requests()]
    other_ring = next(ring for ring in rings if ring.queue is not None and ring.queue.in_ring and ring is not owner)
    other_ring.answer(((later.id + 1) % SLOTS, READ, OKAY))
    with pytest.raises(OtherendError, match="not in the ring"):
        other_ring.drain()
    owner.succeed(request)
    owner.drain()
    assert caller.ends == [("it", 0)]
    assert other.queue is not None


async def test_lost_queues_lose_nothing(rings: list[Ring], caller: Caller) -> None:
    """What all of them left unanswered goes to the next ring in the order in which it was asked for."""
    disk = RingDisk(GEOMETRY)
    attach(rings, disk)
    for number in range(4 * SLOTS + 5):
        disk.read(number * 512, 512, caller.read_done())
    await asyncio.sleep(0)
    disk.detach()
    ring = Ring()
    ring.attach(disk)
    again: list[Request] = []
    while batch := ring.requests():
        again += batch
        ring.succeed(*batch)
        ring.drain()
    assert [request.sector for request in again] == list(range(4 * SLOTS + 5))


async def test_settling_covers_every_queue(rings: list[Ring], caller: Caller) -> None:
    """`settle` waits for the slowest of them."""
    disk = RingDisk(GEOMETRY)
    attach(rings, disk)
    for number in range(2):
        disk.read(number * 512, 512, caller.read_done())
        await asyncio.sleep(0)
    settled = asyncio.ensure_future(disk.settle(60))
    for ring, expected in ((rings[0], False), (rings[1], True)):
        ring.succeed(*ring.requests())
        ring.drain()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert settled.done() is expected


# -- what the disk is like ---------------------------------------------------------------------------------------------


async def test_a_barrier_does_for_a_flush(ring: Ring, caller: Caller) -> None:
    """T37: where the backend has barriers alone, an empty one is the flush, also that of a write with FUA."""
    disk = RingDisk(GEOMETRY)
    ring.attach(disk, replace(GEOMETRY, flush_op=WRITE_BARRIER))
    assert disk.can_flush
    disk.flush(caller.done("flush"))
    disk.write(0, memoryview(bytes(512)), True, caller.done("fua"))
    flush, write = await sent(ring)
    assert (flush.op, flush.grefs, write.op) == (WRITE_BARRIER, (), WRITE)
    ring.succeed(flush, write)
    ring.drain()
    [after] = await sent(ring)
    assert (after.op, after.grefs) == (WRITE_BARRIER, ())
    ring.succeed(after)
    ring.drain()
    assert caller.ends == [("flush", 0), ("fua", 0)]


@pytest.mark.parametrize(
    ("offset", "length", "discarded"),
    [
        (0, 65536, [(15, 112)]),
        (7680, 57344, [(15, 112)]),
        (7680, 57344 - 512, [(15, 56)]),
        (8192, 32768, []),
        (7680, 512, []),
        (0, 512, []),
    ],
)
async def test_a_trim_keeps_to_whole_granules(
    ring: Ring, caller: Caller, offset: int, length: int, discarded: list[tuple[int, int]]
) -> None:
    """Granules of 28 KiB from 7.5 KiB on: parts of one are left alone, as Linux' block layer leaves them."""
    disk = RingDisk(GEOMETRY)
    ring.attach(disk, replace(GEOMETRY, discard_granularity=28672, discard_alignment=7680))
    disk.trim(offset, length, caller.done())
    requests = await sent(ring)
    assert [(request.sector, request.sectors) for request in requests if request.op == DISCARD] == discarded
    ring.succeed(*requests)
    ring.drain()
    assert caller.ends == [("it", 0)]


@pytest.mark.parametrize(
    ("sector", "physical", "sizes"),
    [
        (512, 512, (512, 4096)),
        (512, 4096, (512, 4096)),
        (512, 65536, (512, 65536)),
        (512, 5000, (512, 4096)),
        (512, 1 << 23, (512, 4096)),
        (2048, 2048, (2048, 4096)),
        (4096, 4096, (4096, 4096)),
    ],
)
async def test_the_units_of_a_disk(sector: int, physical: int, sizes: tuple[int, int]) -> None:
    """The backend's sector size binds; its physical one is preferred if it can be; ring units stay 512 (T35)."""
    disk = RingDisk(replace(GEOMETRY, sector_bytes=sector, physical_sector_bytes=physical))
    assert (disk.block_size, disk.preferred_size) == sizes
    assert disk.size_bytes == GEOMETRY.sectors * 512


async def test_another_size(ring: Ring, disk: RingDisk) -> None:
    """Only the size changes."""
    disk.resize(77)
    assert (disk.size_bytes, disk.can_trim, disk.kind) == (77 * 512, True, "disk")
    ring.attach(disk, replace(GEOMETRY, is_cdrom=True))
    assert (disk.size_bytes, disk.kind) == (1 << 33, "CD-ROM")


# -- the ring's room ---------------------------------------------------------------------------------------------------


async def test_requests_of_one_turn_are_published_together(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Twenty requests, one publish."""
    for number in range(20):
        disk.read(number * 512, 512, caller.read_done())
    assert ring.link.published == 0
    assert len(await sent(ring)) == 20
    assert ring.link.published == 1


async def test_what_does_not_fit_waits(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """No more requests than slots; the others follow, in order, as answers make room, each with pages of its own."""
    for number in range(SLOTS + 10):
        disk.read(number * 4096, 4096, caller.read_done(str(number)))
    first = await sent(ring)
    assert [request.sector for request in first] == [number * 8 for number in range(SLOTS)]
    assert len({request.grefs for request in first}) == SLOTS
    ring.succeed(*first)
    ring.drain()
    rest = await sent(ring)
    assert [request.sector for request in rest] == [number * 8 for number in range(SLOTS, SLOTS + 10)]
    ring.succeed(*rest)
    ring.drain()
    assert caller.ends == [(str(number), 0) for number in range(SLOTS + 10)]
    assert caller.data == {str(number): on_disk(number * 8, 8) for number in range(SLOTS + 10)}


async def test_a_request_made_by_an_answer(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Whoever asks again from within `done` is served: the very slot may be used again."""
    for _ in range(SLOTS):
        disk.flush(lambda error: disk.read(512, 512, caller.read_done(str(error))))
    ring.succeed(*await sent(ring))
    ring.drain()
    again = await sent(ring)
    assert [request.op for request in again] == [READ] * SLOTS
    ring.succeed(*again)
    ring.drain()
    assert caller.ends == [("0", 0)] * SLOTS


# -- a backend that lies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [WRITE, FLUSH_DISKCACHE, DISCARD, 255])
async def test_an_answer_with_another_op(ring: Ring, disk: RingDisk, caller: Caller, op: int) -> None:
    """It ends the connection, and its request is done by the next ring: nobody is left waiting."""
    disk.read(512, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, op, OKAY))
    with pytest.raises(OtherendError, match=f"operation {op} to request {request.id} with operation 0"):
        ring.drain()
    assert caller.ends == []
    disk.detach()
    next_ring = Ring()
    next_ring.attach(disk)
    next_ring.succeed(*await sent(next_ring))
    next_ring.drain()
    assert caller.ends == [("it", 0)]


@pytest.mark.parametrize("offset", [1, -1, 1 << 32, -(1 << 40)])
async def test_an_answer_to_nothing(ring: Ring, disk: RingDisk, caller: Caller, offset: int) -> None:
    """An id that is not in the ring ends the connection, and finishes no request."""
    disk.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    wrong = (request.id + offset) % (1 << 64)
    ring.answer((wrong, READ, OKAY))
    with pytest.raises(OtherendError, match=f"a response to request {wrong}, which is not in the ring"):
        ring.drain()
    assert caller.ends == []


async def test_a_second_answer(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A request ends once, whatever the backend says again."""
    disk.read(0, 512, caller.read_done("first"))
    disk.read(0, 512, caller.read_done("second"))
    first, _ = await sent(ring)
    ring.succeed(first, first)
    with pytest.raises(OtherendError, match="not in the ring"):
        ring.drain()
    assert caller.ends == [("first", 0)]


async def test_more_answers_than_requests(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A producer index that cannot be ends the connection before anything is believed."""
    disk.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, READ, OKAY), (request.id, READ, OKAY))
    with pytest.raises(RingError, match="requests that were never made"):
        ring.drain()
    assert caller.ends == []


# -- from one ring to the next -----------------------------------------------------------------------------------------


async def test_the_next_ring_gets_what_the_last_left_first(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Unanswered requests go out again in the order of their first time, before those that still waited, and with the
    data of writes; what was answered does not."""
    data = on_disk(9, 8)
    for number in range(SLOTS + 3):
        disk.write(number * 4096, memoryview(data), False, caller.done(str(number)))
    first = await sent(ring)
    ring.succeed(first[1], first[0], first[5])
    ring.drain()
    ring.requests()
    disk.detach()
    next_ring = Ring()
    next_ring.attach(disk)
    again = next_ring.requests()
    assert all(next_ring.data(request) == data for request in again)
    next_ring.succeed(*again)
    next_ring.drain()
    again += next_ring.requests()
    left = [number for number in range(SLOTS + 3) if number not in (0, 1, 5)]
    assert [request.sector // 8 for request in again] == left
    assert caller.ends[:3] == [("1", 0), ("0", 0), ("5", 0)]


async def test_twice_without_an_answer(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """The order survives any number of rings."""
    for number in range(5):
        disk.read(number * 4096, 512, caller.read_done())
    await sent(ring)
    for _ in range(3):
        disk.detach()
        ring = Ring()
        ring.attach(disk)
        assert [request.sector // 8 for request in await sent(ring)] == [0, 1, 2, 3, 4]


async def test_requests_without_a_ring_wait(caller: Caller) -> None:
    """What is asked for before the first ring, or between two, goes out with the next one."""
    disk = RingDisk(GEOMETRY)
    disk.flush(caller.done())
    await asyncio.sleep(0)
    assert caller.ends == []
    ring = Ring()
    ring.attach(disk)
    [request] = ring.requests()
    ring.succeed(request)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_a_ring_that_goes_before_anything_was_put_into_it(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A request of the very turn in which the ring was lost goes to the next one, and to it alone."""
    disk.flush(caller.done())
    disk.detach()
    assert await sent(ring) == []
    next_ring = Ring()
    next_ring.attach(disk)
    assert len(await sent(next_ring)) == 1


async def test_no_page_is_held_without_a_ring(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """After `detach` the data pages can be taken back: no slice of them is left. To do either twice is nothing."""
    disk.read(0, 512, caller.read_done())
    await sent(ring)
    disk.detach()
    disk.detach()
    ring.pages.pool.close()
    ring.pages.pool.close()


async def test_geometry(ring: Ring) -> None:
    """The disk is what was published last."""
    disk = RingDisk(GEOMETRY)
    assert (disk.size_bytes, disk.read_only, disk.can_flush, disk.can_trim) == (1 << 33, False, True, True)
    ring.attach(disk, Geometry(sectors=8, read_only=True, flush_op=None, can_trim=False))
    assert (disk.size_bytes, disk.read_only, disk.can_flush, disk.can_trim) == (4096, True, False, False)


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_dying_fails_everything(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """What is in the ring, what waits for it, and what comes later: each hears ENODEV, once and in order."""
    for number in range(SLOTS + 2):
        disk.read(number * 4096, 512, caller.read_done(str(number)))
    await sent(ring)
    disk.die()
    disk.write(0, memoryview(bytes(2 * MOST)), True, caller.done("later"))
    assert caller.ends == [*((str(number), errno.ENODEV) for number in range(SLOTS + 2)), ("later", errno.ENODEV)]
    disk.die()
    assert len(caller.ends) == SLOTS + 3


async def test_settled(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """`settle` returns True once the last request is answered, and not before."""
    disk.read(0, 512, caller.read_done())
    disk.read(512, 512, caller.read_done())
    first, second = await sent(ring)
    settled = asyncio.ensure_future(disk.settle(60))
    ring.succeed(first)
    ring.drain()
    await asyncio.sleep(0)
    assert not settled.done()
    ring.succeed(second)
    ring.drain()
    assert await settled
    assert len(caller.ends) == 2


async def test_settling_covers_the_request_of_this_very_turn(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A request that is not in the ring yet is waited for as well."""

    async def ask_and_settle() -> bool:
        disk.flush(caller.done())
        return await disk.settle(60)

    settled = asyncio.ensure_future(ask_and_settle())
    await asyncio.sleep(0)
    [request] = await sent(ring)
    assert not settled.done()
    ring.succeed(request)
    ring.drain()
    assert await settled


async def test_nothing_to_settle(disk: RingDisk) -> None:
    """Without requests it is true at once."""
    assert await disk.settle(60)


async def test_not_settled_in_time(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A backend that does not answer is waited for only as long as was said."""
    disk.read(0, 512, caller.read_done())
    await sent(ring)
    assert not await disk.settle(0)
    assert caller.ends == []


async def test_a_lost_ring_ends_the_settling(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Once there is no ring, nothing is in it."""
    disk.read(0, 512, caller.read_done())
    await sent(ring)
    settled = asyncio.ensure_future(disk.settle(60))
    await asyncio.sleep(0)
    disk.detach()
    assert await settled
