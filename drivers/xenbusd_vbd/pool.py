"""The frontend's data pages: shared once with the backend, used again and again by all queues of a disk.

A request takes as many pages as it has, from one pool. So a few pages serve many small requests or some large ones,
where an area for each slot, as large as the largest request, would need many times as many; and a guest has only 1024
of them for all of its disks (T65). The page that was given back last is taken first, so that the backend, which may
keep them mapped, sees few. The price is that a request's data lies in pieces of a page.
"""

from __future__ import annotations

from xenbusd.api import PAGE_SIZE, Domid, GrantError, Grants, Share
from xenbusd_vbd.protocol import INDIRECT_SEGMENTS_MAX, SEGMENTS_MAX

PAGES = 352
"""Pages that a disk asks for by default: eleven for each slot of a ring of one page."""

PAGES_LEAST = SEGMENTS_MAX
"""Fewer are of no use: one request may need so many."""

LARGEST_SHARE = 8
"""How many of the largest requests the pool holds at once: with one alone, the backend would wait for us each time."""


class Pool:
    """Pages of one connection.

    Args:
        share: the pages; given back by `close`.
    """

    __slots__ = ("_share", "free", "grefs", "size", "views")

    def __init__(self, share: Share) -> None:
        self._share = share
        self.grefs = share.grefs
        self.size = len(share.grefs)
        """Pages in all."""
        self.views = [share.view[at : at + PAGE_SIZE] for at in range(0, self.size * PAGE_SIZE, PAGE_SIZE)]
        """Each page, by its number in the pool."""
        self.free = list(range(self.size))
        """The numbers of those that no request has."""

    def segments(self, offered: int) -> int:
        """How many segments the largest request may have.

        Args:
            offered: the backend's `feature-max-indirect-segments`; 0 if it has none.
        """
        most = min(offered, INDIRECT_SEGMENTS_MAX, self.size // LARGEST_SHARE)
        return max(most, SEGMENTS_MAX)

    def close(self) -> None:
        """Take the pages back. No request may have any. Idempotent."""
        for view in self.views:
            view.release()
        self.views.clear()
        self.free.clear()
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
