"""xenbusd.ring.layout: index arithmetic, and how many slots a ring has."""

from __future__ import annotations

import pytest

from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.layout import (
    HEADER_BYTES,
    REQ_EVENT,
    REQ_PROD,
    RSP_EVENT,
    RSP_PROD,
    U32,
    Raw,
    ahead,
    slots,
    wants_notify,
)


def test_the_header_is_that_of_ring_h() -> None:
    """struct name##_sring: req_prod, req_event, rsp_prod, rsp_event, then padding up to byte 64."""
    assert (REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT) == (0, 1, 2, 3)
    assert HEADER_BYTES == 64


@pytest.mark.parametrize(
    ("pages", "slot_bytes", "count"),
    [
        (1, 112, 32),  # blkif, x86_64: 36 would fit
        (1, 108, 32),  # blkif, x86_32
        (2, 112, 64),
        (16, 112, 512),
        (1, 12, 256),  # netif tx: 336 would fit
        (1, 8, 256),  # netif rx: 504 would fit
        (1, 64, 32),  # echo: 63 would fit
        (1, PAGE_SIZE - HEADER_BYTES, 1),
    ],
)
def test_slots_are_a_power_of_two(pages: int, slot_bytes: int, count: int) -> None:
    """What fits behind the header, rounded down to a power of two (__RING_SIZE)."""
    assert slots(pages, slot_bytes) == count


def test_a_slot_that_does_not_fit_is_refused() -> None:
    """A slot larger than the room behind the header makes no ring."""
    with pytest.raises(ValueError, match="4033 bytes does not fit 1 page"):
        slots(1, PAGE_SIZE - HEADER_BYTES + 1)


@pytest.mark.parametrize(
    ("producer", "consumer", "distance"),
    [(0, 0, 0), (5, 3, 2), (2, U32, 3), (0, U32 - 31, 32), (U32, 0, U32), (3, 5, U32 - 1)],
)
def test_distance_is_taken_across_the_wrap(producer: int, consumer: int, distance: int) -> None:
    """Only the difference of two indices means anything, and it has 32 bits too."""
    assert ahead(producer, consumer) == distance


@pytest.mark.parametrize(
    ("old", "new", "event", "notify"),
    [
        (0, 1, 1, True),  # a fresh ring: the first message wakes
        (0, 5, 1, True),  # as does the first of a batch
        (1, 2, 1, False),  # the other end is awake: its event index lies behind
        (4, 5, 9, False),  # it asked for a later message
        (4, 9, 9, True),  # and here that one is reached
        (4, 10, 9, True),  # or passed
        (7, 7, 7, False),  # nothing new
        (U32, 0, 0, True),  # across the wrap, reached exactly
        (U32 - 1, 3, U32, True),  # across the wrap, passed
        (U32 - 1, U32, 0, False),  # across the wrap, not yet
    ],
)
def test_notify_when_the_event_index_is_passed(old: int, new: int, event: int, notify: bool) -> None:
    """RING_PUSH_*_AND_CHECK_NOTIFY: notify if the producer index moved over the one that the other end sleeps at."""
    assert wants_notify(new, old, event) is notify


def test_a_raw_slot_is_its_bytes() -> None:
    """Raw leaves parsing to the driver."""
    slot = Raw.unpack(b"\x01\x02")
    assert isinstance(slot, Raw)
    assert slot.pack() == b"\x01\x02"
