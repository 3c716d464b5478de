"""How large a request a disk's pages allow."""

from __future__ import annotations

import pytest

from xenbusd_vbd.front.pool import largest_request


@pytest.mark.parametrize(
    ("pages", "offered", "segments"),
    [(352, 0, 11), (352, 10, 11), (352, 32, 32), (352, 256, 44), (4096, 256, 256), (4096, 4096, 256), (11, 256, 11)],
)
def test_the_largest_request(pages: int, offered: int, segments: int) -> None:
    """What the backend takes, what we would use, and what leaves pages for others; a plain request always goes."""
    assert largest_request(pages, offered) == segments
