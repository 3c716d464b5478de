"""The disk's rings: several of them, full ones, and rings that are lost and replaced."""

from __future__ import annotations

import asyncio

import pytest

from tests.doubles.backend_rings import GEOMETRY, SLOTS, Caller, Pages, Ring, attach, on_disk, sent
from xenbusd.errors import OtherendError
from xenbusd_vbd.front.geometry import Geometry
from xenbusd_vbd.front.ring_disk import RingDisk
from xenbusd_vbd.protocol import (
    OKAY,
    READ,
    Request,
)

# -- several queues ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def rings() -> list[Ring]:
    """Four rings with one pool of pages."""
    pages = Pages()
    return [Ring(pages) for _ in range(4)]


async def test_the_queues_share_the_load(rings: list[Ring], caller: Caller) -> None:
    """Single requests go round, a burst is spread in chunks, and requests that do not fit wait for a ring with room."""
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
    other_ring = next(
        ring for ring in rings if ring.block_ring is not None and ring.block_ring.in_ring and ring is not owner
    )
    other_ring.answer(((later.id + 1) % SLOTS, READ, OKAY))
    with pytest.raises(OtherendError, match="not in the ring"):
        other_ring.drain()
    owner.succeed(request)
    owner.drain()
    assert caller.ends == [("it", 0)]
    assert other.block_ring is not None


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
    """A request made from within `done` is served: it may use the slot that has just become free."""
    for _ in range(SLOTS):
        disk.flush(lambda error: disk.read(512, 512, caller.read_done(str(error))))
    ring.succeed(*await sent(ring))
    ring.drain()
    again = await sent(ring)
    assert [request.op for request in again] == [READ] * SLOTS
    ring.succeed(*again)
    ring.drain()
    assert caller.ends == [("0", 0)] * SLOTS


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
