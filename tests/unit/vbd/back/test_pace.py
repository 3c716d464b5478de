"""The pace of a ring's answers: one at a time for a frontend that waits for each, full batches for others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenbusd_vbd.back.pace import TRY_LAST, BatchSize

MOST = 8


def batches(pace: BatchSize, depth: int, count: int) -> tuple[list[int], int]:
    """Serve a frontend that has `depth` requests under way, and sends no more until it is answered.

    Returns: the sizes of the batches, and how often more was looked for in vain.
    """
    sizes, miss = [], 0
    for _ in range(count):
        gathered = 1
        while pace.worth_waiting(gathered):
            if gathered == depth:
                miss += 1
                break
            gathered += 1
        pace.published(gathered)
        sizes.append(gathered)
    return sizes, miss


def test_one_at_a_time_is_hardly_ever_kept_waiting() -> None:
    """At depth 1 every answer is published at once, but for a try now and then."""
    sizes, miss = batches(BatchSize(MOST), 1, 1000)
    assert set(sizes) == {1}
    assert miss <= 5 + 1000 // TRY_LAST


def test_many_are_gathered() -> None:
    """With many requests under way batches are as large as they may be; nothing is waited for in vain."""
    assert batches(BatchSize(MOST), 32, 20) == ([MOST] * 20, 0)


def test_as_many_as_there_are() -> None:
    """A frontend that never has more than three under way is answered three at a time."""
    sizes, miss = batches(BatchSize(MOST), 3, 1000)
    assert set(sizes) == {3}
    assert miss <= 5 + 1000 // TRY_LAST


def test_fewer_than_expected_are_not_expected_again() -> None:
    """A frontend that goes over to one at a time is kept waiting a few times, and then rarely."""
    pace = BatchSize(MOST)
    batches(pace, 32, 20)
    assert batches(pace, 1, 10) == ([1] * 10, 4)
    assert batches(pace, 1, 1000)[1] <= 5 + 1000 // TRY_LAST


@pytest.mark.parametrize(("lull", "small"), [(1, 0), (3, 0), (100, TRY_LAST)])
def test_it_finds_back(lull: int, small: int) -> None:
    """After a short lull batches are full again at once, after a long one with the next try."""
    pace = BatchSize(MOST)
    batches(pace, 32, 20)
    batches(pace, 1, lull)
    sizes, miss = batches(pace, 32, small + 1)
    assert sizes[-1] == MOST
    assert miss == 0


@given(st.lists(st.integers(1, 64), max_size=200))
def test_never_more_than_the_most(sizes: list[int]) -> None:
    """Whatever comes, a full batch is not held back."""
    pace = BatchSize(MOST)
    for size in sizes:
        assert not pace.worth_waiting(MOST)
        pace.published(size)
