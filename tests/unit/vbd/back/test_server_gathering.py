"""How the server gathers answers before it publishes them: small ones while more requests come, large ones hardly."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.doubles.ring_pair import FakeLink, RingPair
from xenbusd.ring.shared import BackRing
from xenbusd_vbd.back import server
from xenbusd_vbd.back.limits import Limits
from xenbusd_vbd.protocol import OKAY, READ, X86_64

MIB = 1 << 20


class AtOnce:
    """A fast path on which every request is carried out, and moves so many bytes."""

    def __init__(self, bytes_each: int) -> None:
        self.bytes_each = bytes_each

    def answer(self, run: bytes, first: int, count: int) -> tuple[list[bytes], int]:
        """Do all."""
        slots = (X86_64.parse_request(run, at * X86_64.slot_bytes) for at in range(first, first + count))
        return [X86_64.pack_response(slot.id, slot.op, OKAY) for slot in slots], count * self.bytes_each


class Bench:
    """A server whose requests are all done at once, on a ring whose frontend sends `to_come` more, one a poll."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bytes_each: int = 4096) -> None:
        self.pair = RingPair()
        self.link = FakeLink(self.pair.back)
        link: Any = self.link
        pages: Any = SimpleNamespace(cache=None)
        self.server = server.BlockServer(link, X86_64, None, pages, Limits())
        self.to_come = 0
        self.miss = 0
        self._id = 0
        monkeypatch.setattr(self.server, "_open_fast_path", lambda: AtOnce(bytes_each))
        monkeypatch.setattr(BackRing, "poll", self._looker())

    def _looker(self) -> Callable[[BackRing], bool]:
        def poll(_: BackRing) -> bool:
            if not self.to_come:
                self.miss += 1
                return False
            self.to_come -= 1
            self._send(1)
            return True

        return poll

    def _send(self, count: int) -> None:
        for _ in range(count):
            self.pair.ask(X86_64.pack_request(READ, self._id, 0, (100,), 8))
            self._id += 1

    def serve(self, count: int, *, to_come: int = 0) -> list[int]:
        """Send requests; `to_come` more follow, one for each poll. Return the ids answered meanwhile."""
        self.link.published = self.miss = 0
        self.to_come = to_come
        self._send(count)
        assert not self.server.drain()
        return [answer.id for answer in self.pair.answers()]


def test_answers_are_gathered_while_more_requests_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, up to CHUNK; then they are published together."""
    bench = Bench(monkeypatch)
    assert bench.serve(1, to_come=server.CHUNK - 1) == list(range(server.CHUNK))
    assert (bench.link.published, bench.miss) == (1, 0)


def test_a_frontend_that_waits_is_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the server has seen that nothing more comes, it does not wait."""
    bench = Bench(monkeypatch)
    bench.serve(1)
    assert bench.miss == 1
    assert bench.serve(1) == [1]
    assert (bench.link.published, bench.miss) == (1, 0)


def test_large_requests_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of a MiB is published by itself, whatever else comes."""
    bench = Bench(monkeypatch, MIB)
    assert bench.serve(1, to_come=1) == [0]
    assert bench.miss == 0


def test_drain_returns_to_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the frontend always sends one more in time, `drain` returns after CHUNK requests found by polling."""
    bench = Bench(monkeypatch)
    publish = bench.link.publish

    def publish_and_be_answered() -> None:
        publish()
        bench._send(1)

    monkeypatch.setattr(bench.link, "publish", publish_and_be_answered)
    bench.serve(1, to_come=1000)
    assert bench.to_come == 1000 - server.CHUNK


def test_every_byte_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters have what was moved in all batches."""
    bench = Bench(monkeypatch)
    bench.serve(20)
    assert bench.link.counters == {"requests": 20, "bytes": 20 * 4096}
