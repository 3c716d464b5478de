"""Looks end when they find nothing, and are tried again now and then."""

from __future__ import annotations

from xenbusd.ring.polling import FAITH_MAX, SLEEPS, Looking


def in_vain(looking: Looking, sleeps: int) -> list[bool]:
    """Go to sleep so many times; whether each was preceded by a look, which found nothing."""
    looked = []
    for _ in range(sleeps):
        looked.append(looking.is_worth_it())
        if looked[-1]:
            looking.in_vain()
    return looked


def test_nothing_to_be_seen() -> None:
    """FAITH_MAX looks for nothing, then one before each SLEEPS-th sleep."""
    looked = in_vain(Looking(), FAITH_MAX + 3 * SLEEPS)
    assert looked == [True] * FAITH_MAX + 3 * ([False] * (SLEEPS - 1) + [True])


def test_one_that_finds_brings_all_back() -> None:
    """After a find, FAITH_MAX are forgiven again."""
    looking = Looking()
    in_vain(looking, FAITH_MAX + SLEEPS - 1)
    assert looking.is_worth_it()
    looking.found()
    assert in_vain(looking, FAITH_MAX + 1) == [True] * FAITH_MAX + [False]
