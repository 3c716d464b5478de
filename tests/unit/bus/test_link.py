"""A backend's link between two requests: when it looks for another one before it sleeps, and what it does meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from xenbusd.bus.link import POLL_ROUNDS, BackLink
from xenbusd.ids import Port
from xenbusd.ring.layout import Raw, RingFormat
from xenbusd.ring.polling import MISSES_MAX, SLEEPS

FORMAT = RingFormat(64, Raw, Raw)


class Ring:
    """A ring whose frontend sends another request as often as the test says, each time while it is looked for."""

    size = 32

    def __init__(self, acts: list[str]) -> None:
        self.acts = acts
        self.to_come = 0
        self.taken = 0
        self.there = 0
        self.unanswered = 0

    def poll(self, times: int) -> bool:
        """Find one if there is one to come."""
        assert times > 0
        self.acts.append("look")
        if self.to_come:
            self.to_come -= 1
            self.there += 1
            return True
        return False

    def rest(self) -> bool:
        """Ask to be notified."""
        self.acts.append("rest")
        return not self.there


class Fixture:
    """A link on such a ring, and what it did, in order."""

    def __init__(self) -> None:
        self.acts: list[str] = []
        self.ring = Ring(self.acts)
        self.ports = SimpleNamespace(latest=None, attach=self._attach)
        events = SimpleNamespace(unmask=lambda _: self.acts.append("unmask"))
        host = SimpleNamespace(grants=None, events=events)
        self.errors: list[BaseException] = []
        dev: Any = SimpleNamespace(
            counters=Counter(), services=SimpleNamespace(host=host, ports=self.ports), fail=self.errors.append
        )
        ring: Any = self.ring
        self.link: BackLink[Raw, Raw] = BackLink(dev, ring, Port(7), FORMAT, lambda: None)
        self.link.start(self.drain)

    def _attach(self, _: Port, handler: Any) -> None:
        self.notified = handler

    def drain(self) -> bool:
        """Take what is there."""
        self.acts.append("drain")
        self.ring.taken += self.ring.there
        self.ring.there = 0
        return False

    def request(self, *, followed_by: int = 0) -> list[str]:
        """Have one request notified, and so many more sent while they are looked for. Return what the link did."""
        self.acts.clear()
        self.ring.there += 1
        self.ring.to_come = followed_by
        self.notified()
        return list(self.acts)


async def test_next_request_is_seen_before_sleeping() -> None:
    """The port is unmasked once, off the way of the next request; we sleep only when no more come."""
    fixture = Fixture()
    assert fixture.request(followed_by=2) == ["drain", "unmask", "look", "drain", "look", "drain", "look", "rest"]


async def test_looks_for_nothing_end() -> None:
    """After MISSES_MAX looks for nothing there are none, but for one in SLEEPS; one that finds brings them
    back."""
    fixture = Fixture()
    looks = [fixture.request().count("look") for _ in range(MISSES_MAX + 2 * SLEEPS)]
    assert looks[:MISSES_MAX] == [1] * MISSES_MAX
    assert looks[MISSES_MAX:] == 2 * [*[0] * (SLEEPS - 1), 1]
    for _ in range(SLEEPS - 1):
        assert fixture.request(followed_by=1) == ["drain", "rest", "unmask"]
    assert fixture.request(followed_by=1).count("look") == 2
    assert fixture.request().count("look") == 1


async def test_nobody_looks_while_another_ring_is_at_work() -> None:
    """Then there is something better to do."""
    fixture = Fixture()
    fixture.ports.latest = Port(8)
    assert fixture.request() == ["drain", "rest", "unmask"]
    assert fixture.request() == ["drain", "unmask", "look", "rest"]


async def test_nobody_looks_while_requests_are_under_way() -> None:
    """Their end will wake us."""
    fixture = Fixture()
    fixture.ring.unanswered = 1
    assert fixture.request() == ["drain", "rest", "unmask"]


async def test_the_loop_has_its_turn() -> None:
    """A frontend that always sends another request in time does not keep the daemon from everything else."""
    fixture = Fixture()
    acts = fixture.request(followed_by=3 * POLL_ROUNDS)
    assert acts == ["drain", "unmask", *["look", "drain"] * POLL_ROUNDS]
    for _ in range(4):
        await asyncio.sleep(0)
    assert fixture.acts[-1] == "rest"
    assert fixture.ring.to_come == fixture.ring.there == 0
    assert fixture.acts.count("unmask") == 1


async def test_error_within_a_look() -> None:
    """What a drain raises after a look ends the connection as any other does."""
    fixture = Fixture()
    error = ValueError("bad slot")
    plain, calls = fixture.drain, []

    def drain() -> bool:
        calls.append(None)
        if len(calls) == 2:
            raise error
        return plain()

    fixture.link._drain = drain
    fixture.request(followed_by=1)
    assert fixture.errors == [error]
    fixture.notified()
    assert len(calls) == 2
