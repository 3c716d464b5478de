"""A port and the turns that its events call for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.doubles.events import FakePorts
from xenbusd.bus.channel import SPURIOUS_MAX, Channel, QueueChannels
from xenbusd.bus.counters import COMMON, Tally
from xenbusd.ids import Port


class Fixture:
    """A channel on port 7, and two rings that could sit on it."""

    def __init__(self) -> None:
        self.ports = FakePorts()
        self.tally = Tally(COMMON)
        self.counters = self.tally.counts
        self.errors: list[Exception] = []
        self.channel = Channel(self.ports, Port(7), self.tally, self.errors.append)
        self.turns: list[str] = []
        self.more: dict[str, int] = {}

    def ring(self, name: str) -> Callable[[], bool]:
        """A ring that has work for `more[name]` turns."""

        def turn() -> bool:
            self.turns.append(name)
            left = self.more.get(name, 0)
            self.more[name] = max(0, left - 1)
            return left > 0

        return turn

    def taken(self) -> list[str]:
        """The turns since the last call."""
        taken, self.turns = self.turns, []
        return taken


@pytest.fixture
async def fixture() -> Fixture:
    """One for each test, on its event loop."""
    return Fixture()


async def test_attaching_takes_a_turn_and_unmasks(fixture: Fixture) -> None:
    """T60: a request may have come before the port was bound."""
    fixture.channel.attach(fixture.ring("tx"))
    assert fixture.taken() == ["tx"]
    assert fixture.ports.acts == [("unmask", 7)]


async def test_several_rings_on_one_port(fixture: Fixture) -> None:
    """Each has its turn at each event; the port is unmasked once, when none has more to do."""
    fixture.channel.attach(fixture.ring("tx"))
    fixture.channel.attach(fixture.ring("rx"))
    fixture.taken()
    fixture.ports.acts.clear()
    fixture.more["rx"] = 1
    fixture.ports.deliver(7)
    assert fixture.taken() == ["tx", "rx"]
    assert fixture.ports.acts == []
    await asyncio.sleep(0)
    assert fixture.taken() == ["tx", "rx"]
    assert fixture.ports.acts == [("unmask", 7)]
    assert fixture.channel.is_shared


async def test_an_error_leaves_the_port_masked(fixture: Fixture) -> None:
    """T61: a frontend that has sent nonsense cannot wake us again, through any ring of the port."""

    def turn() -> bool:
        if fail:
            raise ValueError("nonsense")
        return False

    fail = False
    fixture.channel.attach(turn)
    fixture.channel.attach(fixture.ring("rx"))
    fixture.taken()
    fixture.ports.acts.clear()
    fail = True
    fixture.ports.deliver(7)
    fixture.ports.deliver(7)
    assert [str(error) for error in fixture.errors] == ["nonsense"]
    assert fixture.taken() == []
    assert fixture.ports.acts == []


async def test_spurious_events_are_throttled(fixture: Fixture) -> None:
    """The port is unmasked late after SPURIOUS_MAX events without work; one with work brings it back at once."""
    fixture.channel.attach(fixture.ring("tx"))
    for _ in range(SPURIOUS_MAX - 1):
        fixture.ports.deliver(7)
    assert len(fixture.ports.acts) == SPURIOUS_MAX
    assert fixture.counters["throttled"] == 0
    unmasked = asyncio.Event()
    fixture.ports.on("unmask", 7, unmasked.set)
    fixture.ports.deliver(7)
    assert fixture.counters["throttled"] == 1
    assert len(fixture.ports.acts) == SPURIOUS_MAX
    await unmasked.wait()
    fixture.channel.found_work()
    fixture.ports.deliver(7)
    assert fixture.counters["throttled"] == 1
    assert len(fixture.ports.acts) == SPURIOUS_MAX + 2


async def test_a_listener_unmasks_by_itself(fixture: Fixture) -> None:
    """The port stays masked until its listener is done."""
    woken = asyncio.Event()
    fixture.channel.listen(woken.set)
    fixture.ports.deliver(7)
    assert woken.is_set()
    assert fixture.ports.acts == []
    fixture.channel.unmask()
    assert fixture.ports.acts == [("unmask", 7)]


async def test_is_only_active(fixture: Fixture) -> None:
    """Another port's work since our last turn means that others are at work, too."""
    other = Channel(fixture.ports, Port(8), fixture.tally, fixture.errors.append)
    seen = []
    fixture.channel.attach(lambda: seen.append(fixture.channel.is_only_active) or False)
    other.attach(lambda: False)
    for port in (7, 7, 8, 7, 7):
        fixture.ports.deliver(port)
    assert seen == [False, False, True, False, True]


async def test_closing(fixture: Fixture) -> None:
    """The port is closed once, and neither events nor late turns reach anybody after that."""
    fixture.more["tx"] = 1
    fixture.channel.attach(fixture.ring("tx"))
    fixture.channel.close()
    fixture.channel.close()
    fixture.taken()
    await asyncio.sleep(0)
    fixture.ports.deliver(7)
    assert fixture.taken() == []
    assert fixture.ports.acts == [("unbind", 7)]


async def test_notifications_are_counted(fixture: Fixture) -> None:
    """For `show` and the closing log line."""
    fixture.channel.notify()
    assert fixture.counters["notifications"] == 1
    assert fixture.ports.acts == [("notify", 7)]


@pytest.mark.parametrize("is_shared", [True, False])
async def test_rings_of_a_queue(fixture: Fixture, is_shared: bool) -> None:
    """The first ring opens the channel and the others join it; or each has one of its own."""
    opened = iter([Port(8), Port(9)])
    channels = QueueChannels(fixture.ports, fixture.tally, fixture.errors.append, is_shared=is_shared)
    first = channels.channel(channels.port(lambda: next(opened)))
    second = channels.channel(channels.port(lambda: next(opened)))
    assert (second is first) == is_shared
    assert (first.port, second.port) == (8, 8 if is_shared else 9)
