"""How many data pages a disk shares, and how large a request they allow. Pure.

Decision: D31.
"""

from __future__ import annotations

from xenbusd_vbd.protocol import INDIRECT_SEGMENTS_MAX, SEGMENTS_MAX

PAGES = 352
"""Pages that a disk asks for by default: eleven for each slot of a ring of one page."""

PAGES_LEAST = SEGMENTS_MAX
"""Pages without which a disk cannot work: one request may need so many."""

LARGEST_SHARE = 8
"""About how many of the largest requests a pool holds at once. With one only, the backend would be idle between any two
of them."""


def largest_request(pages: int, offered: int) -> int:
    """How many segments the largest request may have.

    Args:
        pages: in the disk's pool.
        offered: the backend's `feature-max-indirect-segments`; 0 if it has none.
    """
    return max(min(offered, INDIRECT_SEGMENTS_MAX, pages // LARGEST_SHARE), SEGMENTS_MAX)
