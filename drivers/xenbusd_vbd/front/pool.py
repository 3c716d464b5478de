"""The frontend's data pages: shared once with the backend, used again and again by all queues of a disk.

A request takes as many pages as it has, side by side, from one pool. So a few pages serve many small requests or some
large ones, where an area for each slot, as large as the largest request, would need many times as many; and a guest has
only 1024 of them for all of its disks (T65). The first that are free are taken, so that the backend, which may keep
them mapped, sees few. A request that finds no such run waits, and those behind it wait with it, until there is one.
"""

from __future__ import annotations

from xenbusd.api import Domid, GrantError, Grants, Share
from xenbusd_vbd.protocol import INDIRECT_SEGMENTS_MAX, SEGMENTS_MAX

PAGES = 352
"""Pages that a disk asks for by default: eleven for each slot of a ring of one page."""

PAGES_LEAST = SEGMENTS_MAX
"""Fewer are of no use: one request may need so many."""

FREE = b"\1"
"""What `Pool.free` has for a page that nobody has."""

LARGEST_SHARE = 8
"""About how many of the largest requests the pool holds at once: with one, the backend would wait for us each time."""


class Pool:
    """Pages of one connection.

    Args:
        share: the pages; given back by `close`.
    """

    __slots__ = ("_share", "free", "grefs", "memory", "size")

    def __init__(self, share: Share) -> None:
        self._share = share
        self.memory = share.view
        """All pages; whoever slices it lets go of the slice before `close`."""
        self.grefs = share.grefs
        self.size = len(share.grefs)
        """Pages in all."""
        self.free = bytearray(FREE * self.size)
        """A byte for each page: 1 if no request has it."""

    def take(self, count: int) -> int:
        """Take pages side by side. Return the number of the first, or -1 if there are none such."""
        first = self.free.find(FREE * count)
        if first >= 0:
            self.free[first : first + count] = bytes(count)
        return first

    def give(self, first: int, count: int) -> None:
        """Give back what was taken."""
        self.free[first : first + count] = FREE * count

    def segments(self, offered: int) -> int:
        """How many segments the largest request may have.

        Args:
            offered: the backend's `feature-max-indirect-segments`; 0 if it has none.
        """
        most = min(offered, INDIRECT_SEGMENTS_MAX, self.size // LARGEST_SHARE)
        return max(most, SEGMENTS_MAX)

    def close(self) -> None:
        """Take the pages back. Idempotent."""
        self._share.unshare()


def share_pool(grants: Grants, domid: Domid, pages: int) -> Pool:
    """Share a pool with the backend, with half as many pages, and half of that, as long as so many are not to be had.

    Args:
        grants: the door.
        domid: the backend's domain.
        pages: how many are wanted.

    Raises:
        GrantError: not even `PAGES_LEAST`.
    """
    while True:
        try:
            return Pool(grants.share(domid, pages))
        except GrantError:
            if pages <= PAGES_LEAST:
                raise
            pages = max(pages // 2, PAGES_LEAST)
