"""A rate limit: how long the next act waits, by a clock of the test's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenbusd.rate import BURST_S, RateLimit


def limit_of(per_s: int) -> RateLimit:
    """A limit, set at time 0."""
    limit = RateLimit()
    limit.set(per_s, 0.0)
    return limit


def begun(limit: RateLimit, units: int, seconds: float) -> int:
    """How many acts of `units` begin within so many seconds, if there is always another one."""
    now, count = 0.0, 0
    while True:
        now += limit.delay_s(now)
        if now >= seconds:
            return count
        limit.charge(units)
        count += 1


def test_no_limit() -> None:
    """Until one is set, nothing waits, whatever was charged."""
    limit = RateLimit()
    limit.charge(1 << 40)
    assert limit.delay_s(0.0) == 0.0


@pytest.mark.parametrize(("per_s", "units", "expected"), [(100, 1, 1000), (1 << 20, 65536, 160)])
def test_a_steady_rate(per_s: int, units: int, expected: int) -> None:
    """In ten seconds as many acts begin as ten seconds allow, and a burst's worth more."""
    assert expected <= begun(limit_of(per_s), units, 10.0) <= expected * (1 + BURST_S / 10) + 2


def test_an_act_larger_than_a_second() -> None:
    """It begins, and the next one waits until the debt is paid."""
    limit = limit_of(1000)
    assert limit.delay_s(0.0) == 0.0
    limit.charge(10_100)
    assert limit.delay_s(0.0) == pytest.approx(10.0)
    assert limit.delay_s(9.0) == pytest.approx(1.0)
    assert limit.delay_s(10.01) == 0.0


def test_idling_saves_no_more_than_a_burst() -> None:
    """After an hour of idling, no more may begin at once than after BURST_S."""
    limit = limit_of(100)
    limit.delay_s(3600.0)
    count = 0
    while limit.delay_s(3600.0) == 0.0:
        limit.charge(1)
        count += 1
    assert count <= 100 * BURST_S + 1


def test_taking_a_limit_away() -> None:
    """With 0 nothing waits any more, whatever the debt was."""
    limit = limit_of(1)
    limit.charge(1 << 30)
    limit.set(0, 0.0)
    assert limit.delay_s(0.0) == 0.0


@given(st.integers(1, 10**9), st.lists(st.integers(0, 1 << 21), max_size=50))
def test_waiting_for_the_delay_is_enough(per_s: int, costs: list[int]) -> None:
    """An act that waits for `delay_s` may begin then."""
    limit, now = limit_of(per_s), 0.0
    for units in costs:
        if delay := limit.delay_s(now):
            now += delay * (1 + 1e-9) + 1e-9
            assert limit.delay_s(now) <= 1e-6
        limit.charge(units)
