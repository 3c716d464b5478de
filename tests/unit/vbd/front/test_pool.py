"""The frontend's data pages: how many can be had, and how large a request they allow."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from xenbusd.errors import GrantError
from xenbusd.host.interface import Grants
from xenbusd.ids import PAGE_SIZE, Domid
from xenbusd_vbd.front.pool import PAGES, PAGES_LEAST, Pool, share_pool


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


def shared(left: int, pages: int = PAGES) -> tuple[Pool, Sequence[int]]:
    """Share a pool; return it, and what was tried."""
    grants = Gntalloc(left)
    return share_pool(cast("Grants", grants), Domid(3), pages), grants.asked


@pytest.mark.parametrize(
    ("left", "tried"),
    [(1024, [352]), (352, [352]), (351, [352, 176]), (100, [352, 176, 88]), (11, [352, 176, 88, 44, 22, 11])],
)
def test_as_many_pages_as_can_be_had(left: int, tried: list[int]) -> None:
    """T65: all of a guest's disks share 1024 pages: half as many, and half of that, do as well."""
    pool, asked = shared(left)
    assert asked == tried
    assert pool.size == len(pool.free) == len(pool.memory) // PAGE_SIZE == tried[-1]


def test_too_few_pages() -> None:
    """Fewer than one plain request needs are none: the error says what was asked for last."""
    with pytest.raises(GrantError, match=f"{PAGES_LEAST} pages"):
        shared(PAGES_LEAST - 1)


@pytest.mark.parametrize(
    ("pages", "offered", "segments"),
    [(352, 0, 11), (352, 10, 11), (352, 32, 32), (352, 256, 44), (4096, 256, 256), (4096, 4096, 256), (11, 256, 11)],
)
def test_the_largest_request(pages: int, offered: int, segments: int) -> None:
    """What the backend takes, what we would use, and what leaves pages for others; a plain request always goes."""
    pool, _ = shared(pages, pages)
    assert pool.segments(offered) == segments


def test_pages_are_taken_side_by_side() -> None:
    """The first run that is long enough; what is given back is taken again."""
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
