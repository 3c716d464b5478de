"""The checks of a grant copy before it is submitted."""

from __future__ import annotations

import errno

import pytest

from xenbusd.errors import GrantError
from xenbusd.host.interface import Copy
from xenbusd.host.segments import check
from xenbusd.ids import Domid, Gref

GOOD = Copy(to_grant=True, domid=Domid(3), gref=Gref(8), offset=0, local=memoryview(b"abcd"))
"""A segment that is right; each test spoils its own."""


def test_segment_may_fill_its_page_to_the_last_byte() -> None:
    """Offset and length together may be 4096, and not more; and no offset is below 0."""
    offsets = (0, 4092, 4093, 4096, -1)
    assert check([GOOD._replace(offset=offset) for offset in offsets]) == [
        0,
        0,
        errno.EINVAL,
        errno.EINVAL,
        errno.EINVAL,
    ]


@pytest.mark.parametrize(("what", "last"), [("gref", 0xFFFFFFFF), ("domid", 0xFFFF)])
def test_numbers_that_would_be_cut_are_refused(what: str, last: int) -> None:
    """A reference or domain that C would cut down to another one is refused, by segment."""
    values = (0, last, last + 1, -1)
    segments = [
        GOOD._replace(gref=Gref(value)) if what == "gref" else GOOD._replace(domid=Domid(value)) for value in values
    ]
    assert check(segments) == [0, 0, errno.EINVAL, errno.EINVAL]


@pytest.mark.parametrize(
    "bad",
    [GOOD._replace(to_grant=False), GOOD._replace(local=memoryview(b"abcdef")[::2])],
    ids=["read-only", "in pieces"],
)
def test_bad_memory_of_ours_refuses_the_batch(bad: Copy) -> None:
    """Local memory that cannot be used is our own bug, and no segment's status."""
    with pytest.raises(GrantError) as caught:
        check([GOOD, bad])
    assert caught.value.errno == errno.EFAULT


def test_constant_bytes_can_be_copied_out() -> None:
    """Only what is written to has to be writable."""
    assert check([GOOD]) == [0]
