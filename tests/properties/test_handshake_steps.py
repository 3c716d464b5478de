"""Both real ends of a device: each event at every step of their life, noticed first by either end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.doubles.handshake_machine import BACK, FRONT, ID, HandshakeMachine
from xenbusd.bus.handover import Handover
from xenbusd.bus.state import Side, State

STEPS_MAX = 400
"""More steps than a life takes from its first observation to Connected, with one failure on the way."""


def live_until(step: int, fault: str | None, in_order: bool = False) -> tuple[HandshakeMachine, bool]:
    """Let a pair live for so many steps, by turns. Return it, and whether it has nothing more to do."""
    pair = HandshakeMachine()
    pair.begin(in_order=in_order)
    pair.start(BACK)
    pair.start(FRONT)
    if fault is not None:
        pair.faults[fault] = 1
    while step:
        for act in pair.world.steps():
            if act() and not (step := step - 1):
                return pair, False
        if not any(end.client.requests or end.client.arrivals for end in pair.world.ends.values()):
            if pair.world.state(BACK) is pair.world.state(FRONT) is State.CONNECTED or pair.gave_up():
                return pair, True
            pair.world.tick()
    return pair, False


def go_on_alone(pair: HandshakeMachine, side: Side) -> None:
    """Let one end do all that it can do, while the other stands still."""
    end = pair.world.ends.get(side)
    while end is not None and (end.serve() or end.deliver()):
        pass


def at_every_step(fault: str | None, event: Callable[[HandshakeMachine], None], *, in_order: bool = False) -> int:
    """After each step of a life: the event, then one end runs ahead of the other, then both go on for a long time.

    Returns:
        How many steps the life had.
    """
    for step in range(1, STEPS_MAX):
        for first in Side:
            pair, over = live_until(step, fault, in_order)
            event(pair)
            go_on_alone(pair, first)
            pair.teardown()
        if over:
            return step
    raise AssertionError("the pair never connects")


def restart_backend(pair: HandshakeMachine) -> None:
    """SIGKILL, and the next process."""
    pair.kill(BACK)
    pair.start(BACK)


def restart_frontend(pair: HandshakeMachine) -> None:
    """SIGKILL, and the next process."""
    pair.kill(FRONT)
    pair.start(FRONT)


def replace_device(pair: HandshakeMachine) -> None:
    """Another device of the same name, before either end has read the store."""
    pair.force()
    pair.world.store.commit({ID.backend_path: None})
    pair.attach()


@pytest.mark.parametrize("fault", [None, "early", "open", "probe", "geometry"])
def test_one_end_may_run_ahead_at_every_step(fault: str | None) -> None:
    """Whatever an end has missed of the other's states, and whatever has failed before: they find together (T2)."""
    assert at_every_step(fault, HandshakeMachine.no_bug_was_met) > 20


@pytest.mark.parametrize(
    "event",
    [
        lambda pair: pair.kill(FRONT),
        lambda pair: pair.kill(BACK),
        restart_frontend,
        restart_backend,
        lambda pair: pair.stop(FRONT),
        lambda pair: pair.stop(BACK),
        lambda pair: pair.detach(),
        lambda pair: pair.force(),
        replace_device,
        lambda pair: pair.break_ring(BACK),
        lambda pair: pair.break_ring(FRONT),
        lambda pair: pair.end_connection(BACK),
        lambda pair: pair.end_connection(FRONT),
    ],
    ids=[
        "frontend killed",
        "backend killed",
        "frontend killed and started",
        "backend killed and started",
        "frontend stopped",
        "backend stopped",
        "detached",
        "detached by force",
        "removed and attached",
        "backend finds nonsense",
        "frontend finds nonsense",
        "backend has enough",
        "frontend has enough",
    ],
)
def test_an_event_at_every_step(event: Callable[[HandshakeMachine], None]) -> None:
    """Each event, after each step of a life that goes well, whichever end notices first."""
    assert at_every_step(None, event) > 20


def test_a_killed_backend_s_ring_is_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed and started at every step, a backend that answers in order adopts the ring, once there is one."""
    adopted: list[bool] = []
    adopt = Handover.adopt

    def spy(handover: Handover, *args: Any) -> Any:
        journal = adopt(handover, *args)
        adopted.append(True)
        return journal

    monkeypatch.setattr(Handover, "adopt", spy)
    at_every_step(None, restart_backend, in_order=True)
    assert adopted
