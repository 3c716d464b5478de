"""The grant cache: each page is mapped once, and the least recently used go first."""

from __future__ import annotations

import pytest

from tests.doubles.fake_grants import FRONTEND, FakeGrants
from xenbusd.errors import GrantError, LocalProtocolError
from xenbusd.grants.cache import GrantCache


def test_a_page_is_mapped_once() -> None:
    """The same reference again, in one call or a later one, costs no second mapping."""
    grants = FakeGrants([1, 2])
    cache = GrantCache(grants, FRONTEND, 10)
    for _ in range(3):
        assert [page[0] for page in cache.pages((1, 1, 2))] == [1, 1, 2]
    assert grants.map_calls == [1, 2]
    assert grants.mapped == set(cache.mapped) == {1, 2}


def test_a_page_that_cannot_be_mapped() -> None:
    """The pages before it stay mapped, and it is tried again the next time."""
    grants = FakeGrants([1])
    cache = GrantCache(grants, FRONTEND, 10)
    for _ in range(2):
        with pytest.raises(GrantError):
            cache.pages((1, 99))
    assert grants.map_calls == [1, 99, 99]
    assert set(cache.mapped) == {1}


def test_over_the_limit() -> None:
    """Above the limit, not at it; nothing is unmapped before the cache is trimmed."""
    grants = FakeGrants(range(4))
    cache = GrantCache(grants, FRONTEND, 2)
    cache.pages((0, 1))
    assert not cache.over_limit
    cache.trim()
    cache.pages((2, 3))
    assert cache.over_limit
    assert grants.mapped == {0, 1, 2, 3}
    cache.trim()
    assert not cache.over_limit
    assert grants.mapped == {2, 3}


@pytest.mark.parametrize(
    ("used", "kept"),
    [([1, 2, 3, 1, 4], {1, 3, 4}), ([1, 2, 3, 4], {2, 3, 4}), ([1, 1, 1, 2], {1, 2}), ([4, 3, 2, 1, 4], {1, 2, 4})],
)
def test_the_least_recently_used_goes_first(used: list[int], kept: set[int]) -> None:
    """A page that was used again survives one that was not, whichever was mapped first."""
    grants = FakeGrants(range(1, 5))
    cache = GrantCache(grants, FRONTEND, 3)
    for gref in used:
        cache.pages((gref,))
        cache.trim()
    assert grants.mapped == kept


def test_uses_that_a_caller_notes_by_itself() -> None:
    """Pages taken from `mapped` count as used once their references are in `used`."""
    grants = FakeGrants(range(1, 5))
    cache = GrantCache(grants, FRONTEND, 3)
    cache.pages((1, 2, 3))
    cache.used.append((1,))
    cache.pages((4,))
    cache.trim()
    assert {1, 4} <= grants.mapped
    assert len(grants.mapped) == 3


def test_a_page_that_was_dropped_is_mapped_again() -> None:
    """A reference that the frontend still uses comes back."""
    grants = FakeGrants([1, 2])
    cache = GrantCache(grants, FRONTEND, 1)
    for gref in (1, 2, 1):
        assert cache.pages((gref,))[0][0] == gref
        cache.trim()
    assert grants.map_calls == [1, 2, 1]


def test_a_page_in_use_is_not_unmapped() -> None:
    """A slice that still exists is a fault of the caller's, and is reported."""
    grants = FakeGrants([1])
    cache = GrantCache(grants, FRONTEND, 10)
    part = cache.pages((1,))[0][:8]
    with pytest.raises((LocalProtocolError, BufferError)):
        cache.close()
    part.release()


def test_closing_unmaps_everything() -> None:
    """After `close` nothing of the frontend's is mapped; to close twice changes nothing."""
    grants = FakeGrants([1, 2, 3])
    cache = GrantCache(grants, FRONTEND, 10)
    cache.pages((1, 2, 3))
    cache.close()
    assert grants.mapped == set()
    cache.close()
