"""Polling ends when it finds nothing, and is tried again now and then."""

from __future__ import annotations

from xenbusd.ring.polling import MISSES_MAX, SLEEPS, BusyPoll


def miss(poll: BusyPoll, waits: int) -> list[bool]:
    """Wait for so many events; whether each wait was preceded by a poll, which missed."""
    polled = []
    for _ in range(waits):
        polled.append(poll.is_worth_it())
        if polled[-1]:
            poll.miss()
    return polled


def test_misses_stop_it() -> None:
    """MISSES_MAX polls that miss, then one before each SLEEPS-th wait."""
    polled = miss(BusyPoll(), MISSES_MAX + 3 * SLEEPS)
    assert polled == [True] * MISSES_MAX + 3 * ([False] * (SLEEPS - 1) + [True])


def test_a_poll_that_finds_brings_all_back() -> None:
    """After a find, MISSES_MAX misses are allowed again."""
    poll = BusyPoll()
    miss(poll, MISSES_MAX + SLEEPS - 1)
    assert poll.is_worth_it()
    poll.found()
    assert miss(poll, MISSES_MAX + 1) == [True] * MISSES_MAX + [False]


def test_its_numbers_are_the_drivers_choice() -> None:
    """Fewer misses, and another try sooner."""
    assert miss(BusyPoll(misses_max=1, sleeps=2), 5) == [True, False, True, False, True]
