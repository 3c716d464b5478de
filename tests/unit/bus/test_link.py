"""A backend's link between two requests: when it polls before it waits for an event, and what it does meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from tests.doubles.events import FakePorts
from xenbusd.bus.channel import Channel
from xenbusd.bus.counters import COMMON, Tally
from xenbusd.bus.link import BackLink
from xenbusd.ids import Port
from xenbusd.ring.layout import Raw, RingFormat
from xenbusd.ring.polling import MISSES_MAX, ROUNDS_MAX, SLEEPS, BusyPoll

FORMAT = RingFormat(64, Raw, Raw)


class Ring:
    """A ring whose frontend sends another request as often as the test says, each time while it is polled."""

    size = 32

    def __init__(self, acts: list[str]) -> None:
        self.acts = acts
        self.to_come = 0
        self.taken = 0
        self.there = 0
        self.unanswered = 0

    def poll(self) -> bool:
        """Find one if there is one to come."""
        self.acts.append("poll")
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
    """A link on such a ring, and what it did, in order.

    Args:
        poll: the driver's choice.
    """

    def __init__(self, poll: BusyPoll | None = None) -> None:
        self.acts: list[str] = []
        self.ring = Ring(self.acts)
        self.ports = FakePorts()
        self.ports.on("unmask", 7, lambda: self.acts.append("unmask"))
        self.errors: list[BaseException] = []
        channel = Channel(self.ports, Port(7), Tally(COMMON), self.errors.append)
        device: Any = SimpleNamespace(counters=channel.counters)
        dev: Any = None
        ring: Any = self.ring
        grants: Any = None
        self.link: BackLink[Raw, Raw] = BackLink(dev, device, ring, channel, grants, FORMAT, lambda: None)
        self.link.start(self.drain, poll=poll)

    def notified(self) -> None:
        """Have an event arrive."""
        self.ports.deliver(7)

    def drain(self) -> bool:
        """Take what is there."""
        self.acts.append("drain")
        self.ring.taken += self.ring.there
        self.ring.there = 0
        return False

    def request(self, *, followed_by: int = 0) -> list[str]:
        """Have one request notified, and so many more sent while the ring is polled. Return what the link did."""
        self.acts.clear()
        self.ring.there += 1
        self.ring.to_come = followed_by
        self.notified()
        return list(self.acts)


async def test_next_request_is_seen_before_sleeping() -> None:
    """The port is unmasked once, while no request waits for us; we sleep only when no more come."""
    fixture = Fixture(BusyPoll())
    assert fixture.request(followed_by=2) == ["drain", "unmask", "poll", "drain", "poll", "drain", "poll", "rest"]


async def test_polls_that_miss_end() -> None:
    """After MISSES_MAX polls that miss there are none, but for one in SLEEPS; one that finds brings them back."""
    fixture = Fixture(BusyPoll())
    polls = [fixture.request().count("poll") for _ in range(MISSES_MAX + 2 * SLEEPS)]
    assert polls[:MISSES_MAX] == [1] * MISSES_MAX
    assert polls[MISSES_MAX:] == 2 * [*[0] * (SLEEPS - 1), 1]
    for _ in range(SLEEPS - 1):
        assert fixture.request(followed_by=1) == ["drain", "rest", "unmask"]
    assert fixture.request(followed_by=1).count("poll") == 2
    assert fixture.request().count("poll") == 1


async def test_nobody_polls_while_another_ring_is_at_work() -> None:
    """Then there is something better to do."""
    fixture = Fixture(BusyPoll())
    fixture.ports.is_only_active(Port(8))
    assert fixture.request() == ["drain", "rest", "unmask"]
    assert fixture.request() == ["drain", "unmask", "poll", "rest"]


async def test_nobody_polls_while_requests_are_under_way() -> None:
    """Their end will wake us."""
    fixture = Fixture(BusyPoll())
    fixture.ring.unanswered = 1
    assert fixture.request() == ["drain", "rest", "unmask"]


async def test_polling_is_opt_in() -> None:
    """A driver that does not ask for it waits for an event at once."""
    fixture = Fixture()
    for _ in range(3):
        assert fixture.request(followed_by=1) == ["drain", "rest", "unmask"]


async def test_no_poll_on_a_shared_port() -> None:
    """The other ring's events would be late."""
    fixture = Fixture(BusyPoll())
    fixture.link._channel.attach(lambda: False)
    for _ in range(3):
        assert fixture.request(followed_by=1) == ["drain", "rest", "unmask"]


async def test_control_returns_to_the_event_loop() -> None:
    """A frontend that always sends another request in time does not keep the daemon from everything else."""
    fixture = Fixture(BusyPoll())
    acts = fixture.request(followed_by=3 * ROUNDS_MAX)
    assert acts == ["drain", "unmask", *["poll", "drain"] * ROUNDS_MAX]
    for _ in range(4):
        await asyncio.sleep(0)
    assert fixture.acts[-1] == "rest"
    assert fixture.ring.to_come == fixture.ring.there == 0
    assert fixture.acts.count("unmask") == 1


async def test_error_after_a_poll() -> None:
    """What a drain raises after a poll ends the connection as any other does."""
    fixture = Fixture(BusyPoll())
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
