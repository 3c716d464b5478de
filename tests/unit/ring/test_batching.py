"""Adaptive batching: single answers for a frontend that waits for each, full batches for one that keeps sending."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenbusd.ring.batching import TRIAL_LAST, BatchSize

MOST = 8


def batches(batch: BatchSize, depth: int, count: int) -> tuple[list[int], int]:
    """Serve a frontend that has `depth` requests under way, and sends no more until it is answered.

    Returns: the sizes of the batches, and how many polls found nothing.
    """
    sizes, misses = [], 0
    for _ in range(count):
        gathered = 1
        while batch.worth_waiting(gathered):
            if gathered == depth:
                misses += 1
                break
            gathered += 1
        batch.published(gathered)
        sizes.append(gathered)
    return sizes, misses


def test_one_at_a_time_is_hardly_ever_kept_waiting() -> None:
    """At depth 1 every answer is published at once, but for a trial now and then."""
    sizes, misses = batches(BatchSize(MOST), 1, 1000)
    assert set(sizes) == {1}
    assert misses <= 5 + 1000 // TRIAL_LAST


def test_many_are_gathered() -> None:
    """With many requests under way, batches are as large as they may be, and no poll finds nothing."""
    assert batches(BatchSize(MOST), 32, 20) == ([MOST] * 20, 0)


def test_as_many_as_there_are() -> None:
    """A frontend that never has more than three under way is answered three at a time."""
    sizes, misses = batches(BatchSize(MOST), 3, 1000)
    assert set(sizes) == {3}
    assert misses <= 5 + 1000 // TRIAL_LAST


def test_fewer_than_expected_are_not_expected_again() -> None:
    """A frontend that goes over to one at a time is kept waiting a few times, and then rarely."""
    batch = BatchSize(MOST)
    batches(batch, 32, 20)
    assert batches(batch, 1, 10) == ([1] * 10, 4)
    assert batches(batch, 1, 1000)[1] <= 5 + 1000 // TRIAL_LAST


@pytest.mark.parametrize(("lull", "small"), [(1, 0), (3, 0), (100, TRIAL_LAST)])
def test_full_batches_return_after_a_lull(lull: int, small: int) -> None:
    """After a short lull batches are full again at once, after a long one with the next trial."""
    batch = BatchSize(MOST)
    batches(batch, 32, 20)
    batches(batch, 1, lull)
    sizes, misses = batches(batch, 32, small + 1)
    assert sizes[-1] == MOST
    assert misses == 0


@given(st.lists(st.integers(1, 64), max_size=200))
def test_never_more_than_the_most(sizes: list[int]) -> None:
    """Whatever the batches were, a full batch is not held back."""
    batch = BatchSize(MOST)
    for size in sizes:
        assert not batch.worth_waiting(MOST)
        batch.published(size)


def test_nothing_gathered_is_nothing_to_wait_for() -> None:
    """Without answers to publish, whether to poll is not this policy's question."""
    assert not BatchSize(MOST).worth_waiting(0)
