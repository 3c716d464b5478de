"""The block server: each request answered once, in order, with its own id and op, when its data is where it belongs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.ring_pair import Answer, FakeLink, RingPair
from xenbusd.errors import RingError
from xenbusd.ring.layout import REQ_PROD
from xenbusd_vbd.back import server
from xenbusd_vbd.back.limits import Limits
from xenbusd_vbd.back.pages import Pages
from xenbusd_vbd.image.engine import Engine, Finished, Job
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    INDIRECT,
    OKAY,
    READ,
    WRITE,
    WRITE_BARRIER,
    X86_64,
    Request,
    pack_segments,
)

SECTORS = 1 << 20


class SlowEngine(Engine):
    """Keeps each job until the test says that it is done; jobs whose op is in `at_once` are done within `submit`."""

    physical_sector_bytes = 512
    discard_granularity = 4096
    discard_alignment = 0
    can_discard_securely = False

    def __init__(self, *, writable: bool = True) -> None:
        self.sectors = SECTORS
        self.writable = self.can_discard = writable
        self.at_once: set[int] = set()
        self.finished: Finished = lambda _: None
        self.begun: list[int] = []
        self.jobs: dict[int, Job] = {}
        self.closed = False

    def submit(self, jobs: list[Job], finished: Finished) -> list[Job]:
        """Begin jobs."""
        self.finished = finished
        self.begun += [job.request.id for job in jobs]
        self.jobs |= {job.request.id: job for job in jobs if job.request.op not in self.at_once}
        return [job for job in jobs if job.request.op in self.at_once]

    def finish(self, *ids: int, status: int = OKAY) -> None:
        """These are done, or all, as one batch."""
        jobs = [self.jobs.pop(id) for id in ids or list(self.jobs)]
        for job in jobs:
            job.status = status
        self.finished(jobs)

    async def refresh(self) -> None:
        """Nothing changes."""

    async def close(self) -> None:
        """End."""
        assert not self.jobs
        self.closed = True


class FakePages(Pages):
    """Pages of which some cannot be had; checks that each job is begun and finished once."""

    def __init__(self) -> None:
        self.missing: set[int] = set()
        """Grant references that fail."""
        self.tables: dict[tuple[int, ...], bytes] = {}
        """Descriptors, by the pages that they are in."""
        self.is_full = False
        self.under_way: list[Job] = []
        self.finishing: Callable[[], None] = lambda: None
        """Called within `finish`."""
        self.closed = False

    @property
    def full(self) -> bool:
        """What the test says."""
        return self.is_full

    def fetch(self, requests: list[Request]) -> list[bytes | None]:
        """What the test has put there."""
        return [self.tables.get(request.grefs) for request in requests]

    def begin(self, requests: list[Request]) -> tuple[list[Job], list[Job]]:
        """Make jobs without buffers."""
        jobs = [Job(request, []) for request in requests]
        for job in jobs:
            if self.missing & set(job.request.grefs):
                job.status = ERROR
        self.under_way += jobs
        return jobs, [job for job in jobs if job.status != OKAY]

    def finish(self, jobs: list[Job]) -> None:
        """Let go of jobs."""
        self.finishing()
        for job in jobs:
            self.under_way.remove(job)

    def close(self) -> None:
        """End."""
        assert not self.under_way
        self.closed = True


class Bench:
    """A server on a ring, with an engine that waits for the test; requests have the ids 0, 1, 2 and so on."""

    def __init__(self, *, indirect_segments: int = 0, **engine: bool) -> None:
        self.pair = RingPair()
        self.link = FakeLink(self.pair.back)
        link: Any = self.link
        self.pages = FakePages()
        self.engine = SlowEngine(**engine)
        self.limits = Limits()
        self.failures: list[Request] = []
        self.server = server.BlockServer(
            link,
            X86_64,
            self.engine,
            self.pages,
            self.limits,
            indirect_segments=indirect_segments,
            failed=self.failures.append,
        )
        self.asked: list[int] = []

    def slot(self, op: int) -> bytes:
        """The next request: one page, but for a flush; the grant reference is 100 more than the id."""
        id = len(self.asked)
        self.asked.append(op)
        if op == DISCARD:
            return X86_64.pack_discard(id, 0, 8)
        if op == FLUSH_DISKCACHE:
            return X86_64.pack_request(op, id, 0, (), 0)
        return X86_64.pack_request(op, id, id * 8, (100 + id,), 8)

    def ask(self, *ops: int) -> None:
        """Publish requests, and have the server look."""
        self.pair.ask(*map(self.slot, ops))
        while self.server.drain():
            pass

    def answered(self) -> list[int]:
        """The ids of the answers that have come; each carries the op of its request."""
        answers = self.pair.answers()
        assert all(answer.op == self.asked[answer.id] for answer in answers)
        return [answer.id for answer in answers]


# -- answers -----------------------------------------------------------------------------------------------------------


def test_what_is_done_at_once_is_answered_at_once() -> None:
    """Where no device is waited for, the answer is published within `drain`."""
    bench = Bench()
    bench.engine.at_once = {READ}
    bench.ask(READ, WRITE)
    assert bench.answered() == [0]
    bench.engine.finish()
    assert bench.answered() == [1]


def test_answers_come_in_the_order_of_the_requests() -> None:
    """What is done before its turn is answered in its turn, so that a ring can be gone on with after we were killed."""
    bench = Bench()
    bench.ask(READ, WRITE, FLUSH_DISKCACHE)
    bench.engine.finish(2)
    assert bench.answered() == []
    bench.engine.finish(0)
    assert bench.answered() == [0]
    bench.engine.finish(1)
    assert bench.answered() == [1, 2]


def test_nothing_to_drain() -> None:
    """An empty ring is no work, and nothing is published."""
    bench = Bench()
    assert not bench.server.drain()
    assert bench.link.published == 0


def test_answers_are_published_in_chunks() -> None:
    """The frontend sees the first answers of a run while the later requests are done."""
    bench = Bench()
    bench.engine.at_once = {READ}
    bench.ask(*[READ] * 32)
    assert bench.link.published == 32 // server.CHUNK
    assert bench.answered() == list(range(32))


@pytest.mark.parametrize("status", [ERROR, EOPNOTSUPP])
def test_what_the_image_says_is_the_answer(status: int) -> None:
    """A job's status goes to the frontend as it is."""
    bench = Bench()
    bench.ask(WRITE)
    bench.engine.finish(status=status)
    assert bench.pair.answers() == [Answer(0, WRITE, status)]


@pytest.mark.parametrize(
    ("slot", "answer"),
    [
        pytest.param(X86_64.pack_request(READ, 5, SECTORS, (1,), 8), Answer(5, READ, ERROR), id="beyond the end"),
        pytest.param(X86_64.pack_request(WRITE, 5, 0, (), 0), Answer(5, WRITE, ERROR), id="without data"),
        pytest.param(X86_64.pack_request(9, 5, 0, (), 0), Answer(5, 9, EOPNOTSUPP), id="unknown"),
        pytest.param(
            bytes([INDIRECT, WRITE]) + bytes(6) + (5).to_bytes(8, "little"), Answer(5, WRITE, EOPNOTSUPP), id="indirect"
        ),
    ],
)
def test_a_request_that_cannot_be(slot: bytes, answer: Answer) -> None:
    """It is refused in its turn, and neither pages nor image hear of it; nothing behind it waits for it."""
    bench = Bench()
    bench.ask(READ)
    bench.pair.ask(slot)
    bench.ask(READ)
    assert bench.engine.begun == [0, 1]
    assert len(bench.pages.under_way) == 2
    bench.engine.finish()
    assert bench.pair.answers() == [Answer(0, READ, OKAY), answer, Answer(1, READ, OKAY)]
    assert bench.link.counters["errors"] == 1


def test_a_refusal_with_nothing_before_it() -> None:
    """It is answered at once, though other requests are under way behind it."""
    bench = Bench()
    bench.ask(9, READ)
    assert bench.pair.answers() == [Answer(0, 9, EOPNOTSUPP)]


def test_a_read_only_image() -> None:
    """Whatever would change it is refused; reads are done."""
    bench = Bench(writable=False)
    bench.ask(WRITE, READ, FLUSH_DISKCACHE, WRITE_BARRIER, DISCARD)
    assert bench.engine.begun == [1]
    bench.engine.finish()
    assert bench.pair.answers() == [
        Answer(0, WRITE, ERROR),
        Answer(1, READ, OKAY),
        Answer(2, FLUSH_DISKCACHE, ERROR),
        Answer(3, WRITE_BARRIER, ERROR),
        Answer(4, DISCARD, ERROR),
    ]


def test_a_page_that_cannot_be_had() -> None:
    """Its request is ERROR and never reaches the image; the others of the batch do (XSA-361)."""
    bench = Bench()
    bench.pages.missing = {101}
    bench.ask(READ, READ, READ)
    assert bench.engine.begun == [0, 2]
    bench.engine.finish()
    assert bench.pair.answers() == [Answer(0, READ, OKAY), Answer(1, READ, ERROR), Answer(2, READ, OKAY)]


@pytest.mark.parametrize("at_once", [True, False])
def test_data_is_delivered_before_the_answer(at_once: bool) -> None:
    """When the pages are finished with, no answer has been written, let alone published (T36)."""
    bench = Bench()
    bench.engine.at_once = {READ} if at_once else set()
    seen: list[int] = []
    bench.pages.finishing = lambda: seen.append(bench.pair.back.rsp_prod)
    bench.ask(READ)
    if not at_once:
        bench.engine.finish()
    assert seen == [0]
    assert bench.answered() == [0]


def test_what_is_counted() -> None:
    """Requests taken, bytes of those that succeeded, and errors of each kind."""
    bench = Bench()
    bench.pages.missing = {101}
    bench.ask(READ, READ, WRITE, 9)
    bench.engine.finish(0)
    bench.engine.finish(2, status=ERROR)
    assert bench.link.counters == {"requests": 4, "bytes": 4096, "errors": 3}


def test_a_ring_that_cannot_be() -> None:
    """A producer that is too far ahead ends the connection, and none of its requests is begun (T32)."""
    bench = Bench()
    bench.pair.front._words[REQ_PROD] = 33
    with pytest.raises(RingError):
        bench.server.drain()
    assert bench.engine.begun == []


# -- order -------------------------------------------------------------------------------------------------------------


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
    """Later runs join the line, and each begins in its turn."""
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
    """Though nothing is in line, nothing begins before the barrier is done."""
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
    """It has failed, and what waited behind it goes on."""
    bench = Bench()
    bench.pages.missing = {101}
    bench.ask(WRITE, WRITE_BARRIER, WRITE)
    bench.engine.finish(0)
    assert bench.pair.answers() == [Answer(0, WRITE, OKAY), Answer(1, WRITE_BARRIER, ERROR)]
    assert bench.engine.begun == [0, 2]


def test_a_request_that_cannot_be_behind_a_barrier() -> None:
    """It is answered once, though the line is gone through more than once, and what is behind it goes on."""
    bench = Bench()
    bench.ask(WRITE, WRITE_BARRIER, 9, READ, WRITE_BARRIER, 9)
    for id in (0, 1, 3, 4):
        bench.engine.finish(id)
    assert bench.answered() == [0, 1, 2, 3, 4, 5]


def test_full_pages() -> None:
    """With too much mapped nothing begins until all under way is done: then the pages have given back the surplus."""
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
    """Nobody would wake a request that was held then: it begins."""
    bench = Bench()
    bench.pages.is_full = True
    bench.ask(READ)
    assert bench.engine.begun == [0]


# -- indirect, limits, pause -------------------------------------------------------------------------------------------


def test_an_indirect_request() -> None:
    """It becomes the request that it stands for: the engine sees that one, and the answer carries its op (T31)."""
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
    """It is refused in its turn with its inner op, and what is beside it in the ring is done."""
    bench = Bench(indirect_segments=256)
    bench.pages.tables[50,] = pack_segments((7,), 8)
    bench.ask(READ)
    bench.pair.ask(slot)
    bench.ask(READ)
    bench.engine.finish()
    assert bench.pair.answers() == [Answer(0, READ, OKAY), answer, Answer(1, READ, OKAY)]


async def test_within_its_limits() -> None:
    """What is too early is held in order, and answers a barrier's rules; with the limit gone it goes on at once."""
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
    """Nobody has to call: the server wakes itself when the next request's time has come."""
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
    """It lasts until what is under way is done; what comes is held; another engine goes on with it."""
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
    """What it holds is answered with ERROR, and the pages are given back."""
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
    """What was not begun, in a pause or for a limit, stays in the ring for the next process; the rest is answered."""
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


def test_the_first_failure_is_told() -> None:
    """Of what the engine could not do; not of what the frontend asked for wrongly; and once."""
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


# -- the end -----------------------------------------------------------------------------------------------------------


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
    """It is over at once, and what nobody took from the ring stays there."""
    bench = Bench()
    bench.pair.ask(bench.slot(READ))
    await bench.server.finish()
    assert bench.pages.closed
    assert bench.engine.begun == []
