"""The limits of a disk: how long the next request waits, by a clock of the test's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenbusd.rate import BURST_S
from xenbusd_vbd.back.limits import Limits


def served(limits: Limits, size: int, seconds: float) -> int:
    """How many requests of `size` bytes begin within so many seconds, if there is always another one."""
    now, count = 0.0, 0
    while True:
        now += limits.delay_s(now)
        if now >= seconds:
            return count
        limits.charge(size)
        count += 1


def test_no_limit() -> None:
    """Until one is set, nothing waits, whatever was done."""
    limits = Limits()
    limits.charge(1 << 40)
    assert not limits.active
    assert limits.delay_s(0.0) == 0.0


@pytest.mark.parametrize(("iops", "bandwidth", "size", "expected"), [(100, 0, 4096, 1000), (0, 1 << 20, 65536, 160)])
def test_a_steady_rate(iops: int, bandwidth: int, size: int, expected: int) -> None:
    """In ten seconds as many begin as ten seconds allow, and a burst's worth more."""
    limits = Limits()
    limits.set(iops, bandwidth, 0.0)
    assert limits.active
    assert expected <= served(limits, size, 10.0) <= expected * (1 + BURST_S / 10) + 2


def test_both_limits() -> None:
    """The tighter one decides."""
    limits = Limits()
    limits.set(1000, 4096 * 10, 0.0)
    assert 100 <= served(limits, 4096, 10.0) <= 103


def test_a_request_larger_than_a_second() -> None:
    """It is served, and the next one waits until the debt is paid."""
    limits = Limits()
    limits.set(0, 1000, 0.0)
    assert limits.delay_s(0.0) == 0.0
    limits.charge(10_100)
    assert limits.delay_s(0.0) == pytest.approx(10.0)
    assert limits.delay_s(9.0) == pytest.approx(1.0)
    assert limits.delay_s(10.01) == 0.0


def test_idling_saves_no_more_than_a_burst() -> None:
    """After an hour of idling, no more may begin at once than after BURST_S."""
    limits = Limits()
    limits.set(100, 0, 0.0)
    limits.delay_s(3600.0)
    begun = 0
    while limits.delay_s(3600.0) == 0.0:
        limits.charge(0)
        begun += 1
    assert begun <= 100 * BURST_S + 1


def test_taking_a_limit_away() -> None:
    """With 0 nothing waits any more, whatever the debt was."""
    limits = Limits()
    limits.set(1, 1, 0.0)
    limits.charge(1 << 30)
    limits.set(0, 0, 0.0)
    assert not limits.active
    assert limits.delay_s(0.0) == 0.0


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.lists(st.integers(0, 1 << 21), max_size=50))
def test_waiting_for_the_delay_is_enough(iops: int, bandwidth: int, sizes: list[int]) -> None:
    """A request that waits for `delay_s` may begin then."""
    limits, now = Limits(), 0.0
    limits.set(iops, bandwidth, now)
    for size in sizes:
        if delay := limits.delay_s(now):
            now += delay * (1 + 1e-9) + 1e-9
            assert limits.delay_s(now) <= 1e-6
        limits.charge(size)
