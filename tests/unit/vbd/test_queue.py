"""The disk that is made of a ring: what it sends, what it believes, and what becomes of requests without a ring."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.vbd.backend_by_hand import GEOMETRY, Ring, on_disk
from xenbusd.errors import OtherendError, RingError
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    SEGMENTS_MAX,
    WRITE,
    Request,
)
from xenbusd_vbd.queue import DISCARD_BYTES_MAX, BlockQueue, Geometry

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
async def queue(ring: Ring) -> BlockQueue:
    """A queue attached to it."""
    queue = BlockQueue(GEOMETRY)
    ring.attach(queue)
    return queue


@pytest.fixture
def caller() -> Caller:
    """Who asks."""
    return Caller()


async def sent(ring: Ring) -> list[Request]:
    """What reaches the backend of the requests made in this turn of the loop."""
    await asyncio.sleep(0)
    return ring.requests()


# -- one request -------------------------------------------------------------------------------------------------------


async def test_a_read(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """13 sectors are one request for a whole page and five sectors of the next; the data reaches the caller."""
    queue.read(100 * 512, 13 * 512, caller.read_done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.firsts, request.lasts) == (READ, 100, (0, 0), (7, 4))
    ring.succeed(request)
    assert queue.drain()
    assert caller.ends == [("it", 0)]
    assert caller.data["it"] == on_disk(100, 13)
    assert not queue.drain()


async def test_a_write(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """The data is in the pages that the request names."""
    data = on_disk(7, 13)
    queue.write(100 * 512, memoryview(data), False, caller.done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.sectors) == (WRITE, 100, 13)
    assert ring.data(request) == data
    assert caller.ends == []
    ring.succeed(request)
    queue.drain()
    assert caller.ends == [("it", 0)]


async def test_a_flush(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """A flush has no segments."""
    queue.flush(caller.done())
    [request] = await sent(ring)
    assert (request.op, request.grefs) == (FLUSH_DISKCACHE, ())
    ring.succeed(request)
    queue.drain()
    assert caller.ends == [("it", 0)]


async def test_a_trim(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """A trim is a discard, never a secure one."""
    queue.trim(8 * 512, 16 * 512, caller.done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.sectors, request.flag) == (DISCARD, 8, 16, 0)
    ring.succeed(request)
    queue.drain()
    assert caller.ends == [("it", 0)]


@pytest.mark.parametrize(("status", "code"), [(ERROR, errno.EIO), (EOPNOTSUPP, errno.EOPNOTSUPP), (77, errno.EIO)])
async def test_a_failure(ring: Ring, queue: BlockQueue, caller: Caller, status: int, code: int) -> None:
    """Each status but OKAY, known or not, is an errno; a read that failed brings no data."""
    queue.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, READ, status))
    queue.drain()
    assert caller.ends == [("it", code)]
    assert caller.data["it"] == b""
    assert ring.link.counters == {"requests": 1, "errors": 1}


async def test_what_is_counted(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """Requests, and the bytes of those that succeeded."""
    queue.read(0, 1024, caller.read_done())
    queue.flush(caller.done())
    ring.succeed(*await sent(ring))
    queue.drain()
    assert ring.link.counters == {"requests": 2, "bytes": 1024}


# -- splitting ---------------------------------------------------------------------------------------------------------


async def test_the_largest_request_is_not_split(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """44 KiB fill all eleven segments."""
    queue.read(0, MOST, caller.read_done())
    [request] = await sent(ring)
    assert (len(request.grefs), request.sectors) == (SEGMENTS_MAX, 88)


async def test_a_long_read_is_put_together(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """Its parts come back in any order, and the caller hears once, with everything in its place."""
    queue.read(0, 2 * MOST + 512, caller.read_done())
    parts = await sent(ring)
    assert [(part.sector, part.sectors) for part in parts] == [(0, 88), (88, 88), (176, 1)]
    for part in (parts[2], parts[0]):
        ring.succeed(part)
        queue.drain()
    assert caller.ends == []
    ring.succeed(parts[1])
    queue.drain()
    assert caller.ends == [("it", 0)]
    assert caller.data["it"] == on_disk(0, 177)


async def test_a_long_write_is_taken_apart(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """Each part carries its piece of the data to its place on the disk."""
    data = on_disk(3, 177)
    queue.write(512, memoryview(data), False, caller.done())
    parts = await sent(ring)
    assert [(part.sector, part.sectors) for part in parts] == [(1, 88), (89, 88), (177, 1)]
    assert b"".join(ring.data(part) for part in parts) == data
    ring.succeed(*parts)
    queue.drain()
    assert caller.ends == [("it", 0)]


async def test_a_long_trim_is_split(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """No single discard is longer than 1 GiB."""
    queue.trim(0, 2 * DISCARD_BYTES_MAX + 4096, caller.done())
    parts = await sent(ring)
    step = (1 << 30) // 512
    assert [(part.sector, part.sectors) for part in parts] == [(0, step), (step, step), (2 * step, 8)]
    ring.succeed(*parts)
    queue.drain()
    assert caller.ends == [("it", 0)]


async def test_the_first_error_of_a_split_request_counts(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """The caller hears of it when all parts are answered, and gets none of a read's data."""
    queue.read(0, 3 * MOST, caller.read_done())
    parts = await sent(ring)
    ring.succeed(parts[0])
    ring.answer((parts[1].id, READ, EOPNOTSUPP), (parts[2].id, READ, ERROR))
    queue.drain()
    assert caller.ends == [("it", errno.EOPNOTSUPP)]
    assert caller.data["it"] == b""


async def test_fua_is_a_flush_after_all_parts(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """The flush goes out once every part is written, and the caller hears once the flush is done."""
    queue.write(0, memoryview(bytes(MOST + 512)), True, caller.done())
    first, second = await sent(ring)
    ring.succeed(first)
    queue.drain()
    assert await sent(ring) == []
    ring.succeed(second)
    queue.drain()
    [flush] = await sent(ring)
    assert flush.op == FLUSH_DISKCACHE
    assert caller.ends == []
    ring.answer((flush.id, FLUSH_DISKCACHE, ERROR))
    queue.drain()
    assert caller.ends == [("it", errno.EIO)]


async def test_fua_after_a_failure_flushes_nothing(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """A write that failed is reported as it is."""
    queue.write(0, memoryview(bytes(512)), True, caller.done())
    [write] = await sent(ring)
    ring.answer((write.id, WRITE, ERROR))
    queue.drain()
    assert caller.ends == [("it", errno.EIO)]
    assert await sent(ring) == []


# -- the ring's room ---------------------------------------------------------------------------------------------------


async def test_requests_of_one_turn_are_published_together(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """Twenty requests, one publish."""
    for number in range(20):
        queue.read(number * 512, 512, caller.read_done())
    assert ring.link.published == 0
    assert len(await sent(ring)) == 20
    assert ring.link.published == 1


async def test_what_does_not_fit_waits(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """No more requests than slots; the others follow, in order, as answers make room, each with pages of its own."""
    for number in range(SLOTS + 10):
        queue.read(number * 4096, 4096, caller.read_done(str(number)))
    first = await sent(ring)
    assert [request.sector for request in first] == [number * 8 for number in range(SLOTS)]
    assert len({request.grefs for request in first}) == SLOTS
    ring.succeed(*first)
    queue.drain()
    rest = await sent(ring)
    assert [request.sector for request in rest] == [number * 8 for number in range(SLOTS, SLOTS + 10)]
    ring.succeed(*rest)
    queue.drain()
    assert caller.ends == [(str(number), 0) for number in range(SLOTS + 10)]
    assert caller.data == {str(number): on_disk(number * 8, 8) for number in range(SLOTS + 10)}


async def test_a_request_made_by_an_answer(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """Whoever asks again from within `done` is served: the very slot may be used again."""
    for _ in range(SLOTS):
        queue.flush(lambda error: queue.read(512, 512, caller.read_done(str(error))))
    ring.succeed(*await sent(ring))
    queue.drain()
    again = await sent(ring)
    assert [request.op for request in again] == [READ] * SLOTS
    ring.succeed(*again)
    queue.drain()
    assert caller.ends == [("0", 0)] * SLOTS


# -- a backend that lies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [WRITE, FLUSH_DISKCACHE, DISCARD, 255])
async def test_an_answer_with_another_op(ring: Ring, queue: BlockQueue, caller: Caller, op: int) -> None:
    """It ends the connection, and its request is done by the next ring: nobody is left waiting."""
    queue.read(512, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, op, OKAY))
    with pytest.raises(OtherendError, match=f"operation {op} to request {request.id} with operation 0"):
        queue.drain()
    assert caller.ends == []
    queue.detach()
    next_ring = Ring()
    next_ring.attach(queue)
    next_ring.succeed(*await sent(next_ring))
    queue.drain()
    assert caller.ends == [("it", 0)]


@pytest.mark.parametrize("offset", [1, -1, 1 << 32, -(1 << 40)])
async def test_an_answer_to_nothing(ring: Ring, queue: BlockQueue, caller: Caller, offset: int) -> None:
    """An id that is not in the ring ends the connection, and finishes no request."""
    queue.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    wrong = (request.id + offset) % (1 << 64)
    ring.answer((wrong, READ, OKAY))
    with pytest.raises(OtherendError, match=f"a response to request {wrong}, which is not in the ring"):
        queue.drain()
    assert caller.ends == []


async def test_a_second_answer(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """A request ends once, whatever the backend says again."""
    queue.read(0, 512, caller.read_done("first"))
    queue.read(0, 512, caller.read_done("second"))
    first, _ = await sent(ring)
    ring.succeed(first, first)
    with pytest.raises(OtherendError, match="not in the ring"):
        queue.drain()
    assert caller.ends == [("first", 0)]


async def test_more_answers_than_requests(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """A producer index that cannot be ends the connection before anything is believed."""
    queue.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, READ, OKAY), (request.id, READ, OKAY))
    with pytest.raises(RingError, match="requests that were never made"):
        queue.drain()
    assert caller.ends == []


# -- from one ring to the next -----------------------------------------------------------------------------------------


async def test_the_next_ring_gets_what_the_last_left_first(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """Unanswered requests go out again in the order of their first time, before those that still waited, and with the
    data of writes; what was answered does not."""
    data = on_disk(9, 8)
    for number in range(SLOTS + 3):
        queue.write(number * 4096, memoryview(data), False, caller.done(str(number)))
    first = await sent(ring)
    ring.succeed(first[1], first[0], first[5])
    queue.drain()
    ring.requests()
    queue.detach()
    next_ring = Ring()
    next_ring.attach(queue)
    again = next_ring.requests()
    assert all(next_ring.data(request) == data for request in again)
    next_ring.succeed(*again)
    queue.drain()
    again += next_ring.requests()
    left = [number for number in range(SLOTS + 3) if number not in (0, 1, 5)]
    assert [request.sector // 8 for request in again] == left
    assert caller.ends[:3] == [("1", 0), ("0", 0), ("5", 0)]


async def test_twice_without_an_answer(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """The order survives any number of rings."""
    for number in range(5):
        queue.read(number * 4096, 512, caller.read_done())
    await sent(ring)
    for _ in range(3):
        queue.detach()
        ring = Ring()
        ring.attach(queue)
        assert [request.sector // 8 for request in await sent(ring)] == [0, 1, 2, 3, 4]


async def test_requests_without_a_ring_wait(caller: Caller) -> None:
    """What is asked for before the first ring, or between two, goes out with the next one."""
    queue = BlockQueue(GEOMETRY)
    queue.flush(caller.done())
    await asyncio.sleep(0)
    assert caller.ends == []
    ring = Ring()
    ring.attach(queue)
    [request] = ring.requests()
    ring.succeed(request)
    queue.drain()
    assert caller.ends == [("it", 0)]


async def test_a_ring_that_goes_before_anything_was_put_into_it(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """A request of the very turn in which the ring was lost goes to the next one, and to it alone."""
    queue.flush(caller.done())
    queue.detach()
    assert await sent(ring) == []
    next_ring = Ring()
    next_ring.attach(queue)
    assert len(await sent(next_ring)) == 1


async def test_no_page_is_held_without_a_ring(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """After `detach` the data pages can be taken back: no slice of them is left. A second `detach` is nothing."""
    queue.read(0, 512, caller.read_done())
    await sent(ring)
    queue.detach()
    queue.detach()
    ring.pool.view.release()
    ring.memory.append(0)  # what CPython refuses while somebody has a view


async def test_geometry(ring: Ring) -> None:
    """The disk is what was published last."""
    queue = BlockQueue(GEOMETRY)
    assert (queue.size_bytes, queue.read_only, queue.can_flush, queue.can_trim) == (1 << 33, False, True, True)
    ring.attach(queue, Geometry(sectors=8, read_only=True, can_flush=False, can_trim=False))
    assert (queue.size_bytes, queue.read_only, queue.can_flush, queue.can_trim) == (4096, True, False, False)


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_dying_fails_everything(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """What is in the ring, what waits for it, and what comes later: each hears ENODEV, once and in order."""
    for number in range(SLOTS + 2):
        queue.read(number * 4096, 512, caller.read_done(str(number)))
    await sent(ring)
    queue.die()
    queue.write(0, memoryview(bytes(2 * MOST)), True, caller.done("later"))
    assert caller.ends == [*((str(number), errno.ENODEV) for number in range(SLOTS + 2)), ("later", errno.ENODEV)]
    queue.die()
    assert len(caller.ends) == SLOTS + 3


async def test_settled(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """`settle` returns True once the last request is answered, and not before."""
    queue.read(0, 512, caller.read_done())
    queue.read(512, 512, caller.read_done())
    first, second = await sent(ring)
    settled = asyncio.ensure_future(queue.settle(60))
    ring.succeed(first)
    queue.drain()
    await asyncio.sleep(0)
    assert not settled.done()
    ring.succeed(second)
    queue.drain()
    assert await settled
    assert len(caller.ends) == 2


async def test_settling_covers_the_request_of_this_very_turn(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """A request that is not in the ring yet is waited for as well."""

    async def ask_and_settle() -> bool:
        queue.flush(caller.done())
        return await queue.settle(60)

    settled = asyncio.ensure_future(ask_and_settle())
    await asyncio.sleep(0)
    [request] = await sent(ring)
    assert not settled.done()
    ring.succeed(request)
    queue.drain()
    assert await settled


async def test_nothing_to_settle(queue: BlockQueue) -> None:
    """Without requests it is true at once."""
    assert await queue.settle(60)


async def test_not_settled_in_time(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """A backend that does not answer is waited for only as long as was said."""
    queue.read(0, 512, caller.read_done())
    await sent(ring)
    assert not await queue.settle(0)
    assert caller.ends == []


async def test_a_lost_ring_ends_the_settling(ring: Ring, queue: BlockQueue, caller: Caller) -> None:
    """Once there is no ring, nothing is in it."""
    queue.read(0, 512, caller.read_done())
    await sent(ring)
    settled = asyncio.ensure_future(queue.settle(60))
    await asyncio.sleep(0)
    queue.detach()
    assert await settled
