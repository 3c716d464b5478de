"""The block server: indirect requests, failures, any order of everything, and the end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.block_server import SECTORS, Bench
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
    Request,
    pack_segments,
)


def test_an_indirect_request() -> None:
    """The engine gets the request that it stands for, and the answer carries that request's op (T31)."""
    bench = Bench(indirect_segments=256)
    grefs = tuple(range(200, 220))
    bench.pages.tables[50,] = pack_segments(grefs, 160)
    bench.pair.ask(X86_64.pack_indirect(WRITE, 5, 8, 20, (50,)))
    bench.server.drain()
    assert bench.engine.jobs[5].request == Request(WRITE, 5, 8, 160, grefs, (), ())
    bench.engine.finish()
    assert bench.pair.answers() == [Answer(5, WRITE, OKAY)]
    assert bench.link.counters["bytes"] == 160 * 512


@pytest.mark.parametrize(
    ("slot", "answer"),
    [
        pytest.param(X86_64.pack_indirect(READ, 5, 8, 21, (51,)), Answer(5, READ, ERROR), id="no such page"),
        pytest.param(X86_64.pack_indirect(READ, 5, 8, 257, (50,)), Answer(5, READ, ERROR), id="more than offered"),
        pytest.param(X86_64.pack_indirect(READ, 5, 8, 0, (50,)), Answer(5, READ, ERROR), id="none"),
        pytest.param(
            X86_64.pack_indirect(WRITE_BARRIER, 5, 8, 2, (50,)), Answer(5, WRITE_BARRIER, ERROR), id="barrier"
        ),
        pytest.param(X86_64.pack_indirect(READ, 5, SECTORS, 1, (50,)), Answer(5, READ, ERROR), id="beyond the end"),
    ],
)
def test_an_indirect_request_that_cannot_be(slot: bytes, answer: Answer) -> None:
    """It is refused in its turn with its inner op, and the requests beside it are carried out."""
    bench = Bench(indirect_segments=256)
    bench.pages.tables[50,] = pack_segments((7,), 8)
    bench.ask(READ)
    bench.pair.ask(slot)
    bench.ask(READ)
    bench.engine.finish()
    assert bench.pair.answers() == [Answer(0, READ, OKAY), answer, Answer(1, READ, OKAY)]


def test_the_first_failure_is_reported() -> None:
    """`failed` is called once, for a request that the engine could not carry out; not for one that was refused."""
    bench = Bench()
    bench.ask(9, READ, READ, WRITE)
    bench.engine.finish(1)
    assert bench.failures == []
    bench.engine.finish(2, status=ERROR)
    bench.engine.finish(3, status=ERROR)
    assert [request.id for request in bench.failures] == [2]


EVERYTHING = [READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE, DISCARD, 9]


@settings(deadline=None)
@given(data=st.data())
def test_any_order(data: st.DataObject) -> None:
    """Whatever is asked for and in whatever order it is done: each request is answered exactly once and in its
    turn, a barrier begins when all before it are done, and nothing behind it begins before it is done (T37)."""
    bench = Bench()
    bench.engine.at_once = data.draw(st.sets(st.sampled_from(EVERYTHING)))
    bench.pages.missing = {100 + id for id in data.draw(st.sets(st.integers(0, 40), max_size=5))}
    answered: list[int] = []
    looked_at = 0
    for _ in range(data.draw(st.integers(1, 12))):
        room = bench.pair.front.free
        bench.pages.is_full = data.draw(st.booleans())
        if data.draw(st.booleans()) and bench.engine.jobs:
            ids = st.lists(st.sampled_from(sorted(bench.engine.jobs)), min_size=1, unique=True)
            bench.engine.finish(*data.draw(ids))
        else:
            bench.ask(*data.draw(st.lists(st.sampled_from(EVERYTHING), max_size=min(room, 20))))
        answered += bench.answered()
        under_way = {job.request.id for job in bench.pages.under_way}
        for id in bench.engine.begun[looked_at:]:
            earlier = [other for other in range(id) if other in under_way]
            barriers = [other for other in earlier if bench.asked[other] == WRITE_BARRIER]
            assert not barriers, f"{id} began while the barrier {barriers} was under way"
            assert bench.asked[id] != WRITE_BARRIER or id not in under_way or not earlier
        looked_at = len(bench.engine.begun)
    bench.pages.is_full = False
    while bench.engine.jobs:
        bench.engine.finish()
        answered += bench.answered()
    assert answered == list(range(len(bench.asked)))


async def test_finish_waits_for_everything() -> None:
    """What was taken from the ring is done and answered, what is held included, before engine and pages end."""
    bench = Bench()
    bench.ask(WRITE, WRITE_BARRIER, READ)
    over = asyncio.ensure_future(bench.server.finish())
    for id in range(3):
        await asyncio.sleep(0)
        assert not over.done()
        bench.engine.finish(id)
    await over
    assert bench.answered() == [0, 1, 2]
    assert bench.pages.closed


async def test_finish_without_anything_to_do() -> None:
    """`finish` returns at once, and requests that were not taken stay in the ring."""
    bench = Bench()
    bench.pair.ask(bench.slot(READ))
    await bench.server.finish()
    assert bench.pages.closed
    assert bench.engine.begun == []
