"""Looks end when they find nothing, and are tried again now and then."""

from __future__ import annotations

from xenbusd.ring.polling import MISSES_MAX, SLEEPS, BusyPoll


def miss(looking: BusyPoll, sleeps: int) -> list[bool]:
    """Go to sleep so many times; whether each was preceded by a look, which found nothing."""
    looked = []
    for _ in range(sleeps):
        looked.append(looking.is_worth_it())
        if looked[-1]:
            looking.miss()
    return looked


def test_nothing_to_be_seen() -> None:
    """MISSES_MAX looks for nothing, then one before each SLEEPS-th sleep."""
    looked = miss(BusyPoll(), MISSES_MAX + 3 * SLEEPS)
    assert looked == [True] * MISSES_MAX + 3 * ([False] * (SLEEPS - 1) + [True])


def test_one_that_finds_brings_all_back() -> None:
    """After a find, MISSES_MAX are forgiven again."""
    looking = BusyPoll()
    miss(looking, MISSES_MAX + SLEEPS - 1)
    assert looking.is_worth_it()
    looking.found()
    assert miss(looking, MISSES_MAX + 1) == [True] * MISSES_MAX + [False]
