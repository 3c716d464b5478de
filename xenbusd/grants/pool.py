"""A frontend's data pages: shared once with the backend, used again and again by all queues of a device.

A request takes as many pages as it needs, side by side, from one pool. So a few pages serve many small requests or some
large ones, where an area for each slot, as large as the largest request, would need many times as many; and a guest has
only 1024 pages for all of its devices (T65). The first free run that is long enough is taken, so that the backend,
which may keep the pages mapped, sees few of them.
"""

from __future__ import annotations

from typing import Self

from xenbusd.errors import GrantError
from xenbusd.host.interface import Grants, Share
from xenbusd.ids import Domid

FREE = b"\1"
"""The value of a free page in `PagePool.free`."""


class PagePool:
    """Pages that are shared with one backend for one connection.

    Args:
        share: the pages; given back by `close`.
    """

    __slots__ = ("_share", "free", "grefs", "memory", "size")

    def __init__(self, share: Share) -> None:
        self._share = share
        self.memory = share.view
        """All pages, end to end. Every slice of it must be gone before `close`."""
        self.grefs = share.grefs
        """One reference for each page, in order."""
        self.size = len(share.grefs)
        """Pages in all."""
        self.free = bytearray(FREE * self.size)
        """A byte for each page: 1 while the page is free, otherwise 0."""

    @classmethod
    def share(cls, grants: Grants, domid: Domid, pages: int, least: int) -> Self:
        """Share a pool with the backend. As long as that many pages cannot be allocated, try half as many.

        Args:
            grants: this domain's grant table.
            domid: the backend's domain.
            pages: the number of pages wanted.
            least: the smallest number of pages that is enough.

        Raises:
            GrantError: not even `least` pages can be allocated.
        Blocks: in the kernel, for as long as it takes to allocate the pages.
        """
        pages = max(pages, least)
        while True:
            try:
                return cls(grants.share(domid, pages))
            except GrantError:
                if pages <= least:
                    raise
                pages = max(pages // 2, least)

    def take(self, count: int) -> int:
        """Take `count` pages side by side. Return the number of the first, or -1 if there is no such run."""
        first = self.free.find(FREE * count)
        if first >= 0:
            self.free[first : first + count] = bytes(count)
        return first

    def give(self, first: int, count: int) -> None:
        """Give back pages that were taken."""
        self.free[first : first + count] = FREE * count

    def close(self) -> None:
        """Take the pages back from the backend. Idempotent.

        Raises:
            LocalProtocolError: a slice of `memory` is still alive; the grant stands.
        """
        self._share.unshare()
