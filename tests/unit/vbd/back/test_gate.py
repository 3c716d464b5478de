"""The requests that a block server holds: behind a barrier, for lack of pages, for the limits, and in a pause."""

from __future__ import annotations

import asyncio

from tests.doubles.block_server import Bench, SlowEngine
from tests.doubles.ring_pair import Answer
from xenbusd_vbd.protocol import (
    DISCARD,
    ERROR,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    WRITE,
    WRITE_BARRIER,
    X86_64,
    pack_segments,
)


def test_a_barrier_waits_for_what_is_under_way() -> None:
    """It begins once the last request before it is done, be it from an earlier run (T37)."""
    bench = Bench()
    bench.ask(WRITE, WRITE)
    bench.ask(WRITE_BARRIER)
    bench.engine.finish(1)
    assert bench.engine.begun == [0, 1]
    bench.engine.finish(0)
    assert bench.engine.begun == [0, 1, 2]


def test_what_comes_while_a_barrier_waits_waits_behind_it() -> None:
    """Later runs are queued, and each begins in its turn."""
    bench = Bench()
    bench.ask(WRITE)
    bench.ask(WRITE_BARRIER)
    bench.ask(READ, FLUSH_DISKCACHE)
    bench.ask(DISCARD)
    assert bench.engine.begun == [0]
    bench.engine.finish(0)
    assert bench.engine.begun == [0, 1]
    bench.engine.finish(1)
    assert bench.engine.begun == [0, 1, 2, 3, 4]


def test_what_comes_while_a_barrier_is_under_way_waits() -> None:
    """Though nothing is queued, nothing begins before the barrier is done."""
    bench = Bench()
    bench.ask(WRITE_BARRIER)
    bench.ask(READ)
    assert bench.engine.begun == [0]
    bench.engine.finish(0)
    assert bench.engine.begun == [0, 1]


def test_barriers_one_after_the_other() -> None:
    """Each waits for the one before it."""
    bench = Bench()
    bench.ask(WRITE_BARRIER, WRITE_BARRIER, WRITE_BARRIER)
    for id in range(3):
        assert bench.engine.begun == list(range(id + 1))
        bench.engine.finish(id)
    assert bench.answered() == [0, 1, 2]


def test_barriers_that_are_done_at_once() -> None:
    """On an image in memory nothing is ever held: one `drain` does all, in order."""
    bench = Bench()
    bench.engine.at_once = {READ, WRITE_BARRIER}
    bench.ask(READ, WRITE_BARRIER, READ, WRITE_BARRIER, WRITE_BARRIER, READ)
    assert bench.engine.begun == [0, 1, 2, 3, 4, 5]
    assert bench.answered() == [0, 1, 2, 3, 4, 5]


def test_a_barrier_whose_page_cannot_be_had() -> None:
    """It fails, and the requests behind it begin."""
    bench = Bench()
    bench.pages.missing = {101}
    bench.ask(WRITE, WRITE_BARRIER, WRITE)
    bench.engine.finish(0)
    assert bench.pair.answers() == [Answer(0, WRITE, OKAY), Answer(1, WRITE_BARRIER, ERROR)]
    assert bench.engine.begun == [0, 2]


def test_a_request_that_cannot_be_behind_a_barrier() -> None:
    """It is answered once, though held requests are gone through more than once, and those behind it begin."""
    bench = Bench()
    bench.ask(WRITE, WRITE_BARRIER, 9, READ, WRITE_BARRIER, 9)
    for id in (0, 1, 3, 4):
        bench.engine.finish(id)
    assert bench.answered() == [0, 1, 2, 3, 4, 5]


def test_full_pages() -> None:
    """With too many pages mapped nothing begins until all jobs are done; by then the surplus is unmapped."""
    bench = Bench()
    bench.ask(READ, READ)
    bench.pages.is_full = True
    bench.ask(READ)
    bench.engine.finish(1)
    assert bench.engine.begun == [0, 1]
    bench.pages.is_full = False
    bench.engine.finish(0)
    assert bench.engine.begun == [0, 1, 2]


def test_full_pages_with_nothing_under_way() -> None:
    """The request begins: if it were held, nothing would ever release it."""
    bench = Bench()
    bench.pages.is_full = True
    bench.ask(READ)
    assert bench.engine.begun == [0]


async def test_within_its_limits() -> None:
    """Requests that are too early are held in order, and begin at once when the limit is taken away."""
    bench = Bench()
    bench.limits.set(0, 1, asyncio.get_running_loop().time())
    bench.engine.at_once = {READ, WRITE}
    bench.ask(READ, WRITE, READ)
    assert bench.answered() == [0]
    bench.ask(WRITE)
    assert bench.answered() == []
    bench.limits.set(0, 0, asyncio.get_running_loop().time())
    bench.server.limits_changed()
    assert bench.answered() == [1, 2, 3]


async def test_time_brings_the_next_one() -> None:
    """The server has a timer of its own: the next request begins when the limits allow, without any call."""
    bench = Bench()
    bench.limits.set(1000, 0, asyncio.get_running_loop().time())
    bench.engine.at_once = {READ}
    bench.ask(*[READ] * 32)
    answered: list[int] = []
    async with asyncio.timeout(60):
        while len(answered) < 32:
            await asyncio.sleep(0)
            answered += bench.answered()
    assert answered == list(range(32))


async def test_a_pause() -> None:
    """`pause` returns once nothing is under way. Requests that come are held, and carried out by the next engine."""
    bench = Bench()
    bench.ask(READ)
    pausing = asyncio.ensure_future(bench.server.pause())
    await asyncio.sleep(0)
    bench.ask(WRITE, READ)
    assert not pausing.done()
    assert bench.engine.begun == [0]
    bench.engine.finish()
    await pausing
    assert bench.answered() == [0]
    other = SlowEngine()
    other.at_once = {READ, WRITE}
    bench.server.resume(other)
    assert bench.answered() == [1, 2]
    assert (bench.engine.begun, other.begun) == ([0], [1, 2])


async def test_the_end_of_a_paused_server() -> None:
    """The held requests get ERROR, and the pages are given back."""
    bench = Bench()
    await bench.server.pause()
    bench.ask(READ, WRITE)
    await bench.server.finish()
    assert bench.pair.answers() == [Answer(0, READ, ERROR), Answer(1, WRITE, ERROR)]
    assert bench.pages.closed


async def test_an_indirect_request_that_a_pause_held_to_the_end() -> None:
    """It gets ERROR as well, with its inner operation, and its descriptors are not fetched: nothing was written."""
    bench = Bench(indirect_segments=256)
    bench.pages.tables[50,] = pack_segments(tuple(range(200, 220)), 160)
    await bench.server.pause()
    bench.pair.ask(X86_64.pack_indirect(WRITE, 5, 8, 20, (50,)))
    bench.server.drain()
    await bench.server.finish()
    assert bench.pair.answers() == [Answer(5, WRITE, ERROR)]
    assert bench.engine.begun == []


async def test_the_end_of_the_daemon() -> None:
    """Requests that were held, in a pause or for a limit, stay in the ring for the next daemon; others are answered."""
    bench = Bench()
    bench.ask(READ)
    bench.limits.set(1, 0, asyncio.get_running_loop().time())
    bench.ask(READ, READ, WRITE)
    begun = list(bench.engine.begun)
    over = asyncio.ensure_future(bench.server.finish(stopping=True))
    await asyncio.sleep(0)
    bench.ask(READ)
    bench.engine.finish()
    await over
    assert bench.answered() == begun == bench.engine.begun
    assert bench.pair.back.unanswered == 5 - len(begun)
    assert bench.pages.closed
