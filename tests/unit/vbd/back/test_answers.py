"""The answers of a block server: one for each request, in its turn, with its id and op, after its data."""

from __future__ import annotations

import pytest

from tests.doubles.block_server import SECTORS, Bench
from tests.doubles.ring_pair import Answer
from xenbusd.errors import RingError
from xenbusd.ring.layout import REQ_PROD
from xenbusd_vbd.back import server
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
)


def test_what_is_done_at_once_is_answered_at_once() -> None:
    """An answer that needs no device is published within `drain`."""
    bench = Bench()
    bench.engine.at_once = {READ}
    bench.ask(READ, WRITE)
    assert bench.answered() == [0]
    bench.engine.finish()
    assert bench.answered() == [1]


def test_answers_come_in_the_order_of_the_requests() -> None:
    """A request that is done early is answered in its turn, so that the next daemon can adopt the ring after a kill."""
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
    """It is refused in its turn, reaches neither pages nor image, and holds up nothing behind it."""
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
    """Its request gets ERROR and never reaches the image; the others of the batch do (XSA-361)."""
    bench = Bench()
    bench.pages.missing = {101}
    bench.ask(READ, READ, READ)
    assert bench.engine.begun == [0, 2]
    bench.engine.finish()
    assert bench.pair.answers() == [Answer(0, READ, OKAY), Answer(1, READ, ERROR), Answer(2, READ, OKAY)]


@pytest.mark.parametrize("at_once", [True, False])
def test_data_is_delivered_before_the_answer(at_once: bool) -> None:
    """The pages are finished before any answer is put, let alone published (T36)."""
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
