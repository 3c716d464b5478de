"""The frontend's data pages: how many the guest can share, and which of them a request gets."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from xenbusd.errors import GrantError
from xenbusd.grants.pool import PagePool
from xenbusd.host.interface import Grants
from xenbusd.ids import PAGE_SIZE, Domid

LEAST = 11


class Gntalloc:
    """A guest's grant device with some pages left.

    Args:
        left: how many.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self.asked: list[int] = []

    def share(self, domid: Domid, pages: int) -> Any:
        """Share pages, or refuse as the kernel does."""
        assert domid == 3
        self.asked.append(pages)
        if pages > self.left:
            raise GrantError("xengntshr_share_pages", errno.ENOSPC, f"domain 3, {pages} pages")
        return SimpleNamespace(view=memoryview(bytearray(pages * PAGE_SIZE)), grefs=tuple(range(8, 8 + pages)))


def shared(left: int, pages: int) -> tuple[PagePool, Sequence[int]]:
    """Share a pool; return it, and what was tried."""
    grants = Gntalloc(left)
    return PagePool.share(cast("Grants", grants), Domid(3), pages, LEAST), grants.asked


@pytest.mark.parametrize(
    ("left", "tried"),
    [(1024, [352]), (352, [352]), (351, [352, 176]), (100, [352, 176, 88]), (11, [352, 176, 88, 44, 22, 11])],
)
def test_as_many_pages_as_can_be_had(left: int, tried: list[int]) -> None:
    """T65: all devices of a guest share 1024 pages: if they do not suffice, half as many are tried, and so on."""
    pool, asked = shared(left, 352)
    assert asked == tried
    assert pool.size == len(pool.free) == len(pool.memory) // PAGE_SIZE == tried[-1]


def test_too_few_pages() -> None:
    """Fewer than the least are refused: the error says what was asked for last."""
    with pytest.raises(GrantError, match=f"{LEAST} pages"):
        shared(LEAST - 1, 352)


def test_no_fewer_than_the_least() -> None:
    """Somebody who wants fewer than the least gets the least."""
    assert shared(1024, 1)[1] == [LEAST]


def test_pages_are_taken_side_by_side() -> None:
    """The first run that is long enough is taken; what is given back is taken again."""
    pool, _ = shared(1024, 20)
    assert [pool.take(4), pool.take(1), pool.take(4), pool.take(11)] == [0, 4, 5, 9]
    assert pool.take(1) == -1
    pool.give(0, 4)
    pool.give(5, 4)
    assert pool.take(5) == -1, "eight are free, but not side by side"
    assert [pool.take(1), pool.take(4), pool.take(3)] == [0, 5, 1]
    pool.give(4, 1)
    pool.give(5, 4)
    assert pool.take(5) == 4
