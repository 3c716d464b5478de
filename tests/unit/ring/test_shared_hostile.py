"""Ends of a ring that write what no honest end writes: the other end refuses it, or is not harmed."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.doubles.small_ring import SIZE, SLOT, Ring, names, take_all
from xenbusd.errors import LocalProtocolError, RingError
from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.layout import HEADER_BYTES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, U32
from xenbusd.ring.shared import BackRing, FrontRing


@pytest.mark.parametrize("start", [0, 5, U32 - 3])
@pytest.mark.parametrize("jump", [SIZE + 1, 2 * SIZE, 1 << 31, U32])
def test_a_request_producer_too_far_ahead_is_refused(start: int, jump: int) -> None:
    """T32, XSA-38: more requests than there are slots cannot be; one step back is 2^32 - 1 ahead."""
    ring = Ring(start)
    ring.words[REQ_PROD] = (start + jump) & U32
    with pytest.raises(RingError, match="req_prod"):
        ring.back.take()


@pytest.mark.parametrize("start", [0, U32 - 3])
@pytest.mark.parametrize("back", [1, 3, 5])
def test_a_request_producer_that_goes_back_is_refused(start: int, back: int) -> None:
    """Requests that were taken and are not answered cannot be taken back, or old slots would be taken for ever."""
    ring = Ring(start)
    ring.ask(5)
    take_all(ring.back)
    ring.words[REQ_PROD] = (start + 5 - back) & U32
    with pytest.raises(RingError, match="req_prod"):
        ring.back.take()


def test_taken_requests_count_until_they_are_answered() -> None:
    """With all slots taken and none answered, one more request would lie in a slot whose answer is owed."""
    ring = Ring()
    ring.ask(SIZE)
    take_all(ring.back)
    ring.words[REQ_PROD] = SIZE + 1
    with pytest.raises(RingError, match="req_prod"):
        ring.back.take()
    ring.answer(1)
    assert ring.back.take()[1] == 1


@pytest.mark.parametrize("start", [0, U32 - 3])
@pytest.mark.parametrize("jump", [4, SIZE, SIZE + 1, 1 << 31, U32])
def test_a_response_to_a_request_never_made_is_refused(start: int, jump: int) -> None:
    """The frontend distrusts its backend as well: with three requests made there are at most three responses."""
    ring = Ring(start)
    ring.ask(3)
    ring.words[RSP_PROD] = (start + jump) & U32
    with pytest.raises(RingError, match="never made"):
        ring.front.take()


def test_a_response_to_a_request_not_published_is_refused() -> None:
    """What was put and not published is nothing that an honest backend knows of."""
    ring = Ring()
    ring.ask(1)
    ring.front.put(b"")
    ring.words[RSP_PROD] = 2
    with pytest.raises(RingError, match="never made"):
        ring.front.take()


@pytest.mark.parametrize("event", [0, 1, 2, 1 << 31, U32])
def test_any_event_index_is_harmless(event: int) -> None:
    """The other end's event index decides whether it is notified, and nothing else."""
    ring = Ring()
    ring.words[REQ_EVENT] = ring.words[RSP_EVENT] = event
    ring.front.put(b"")
    assert ring.front.publish() is (event == 1)
    assert ring.back.take()[1] == 1
    ring.back.put(b"")
    assert ring.back.publish() is (event == 1)


class Flipping:
    """Stands in for the mapped pages; every read of them gives other bytes, and is noted.

    Args:
        produced: what a read of each producer index gives: the first, then the second at each read after that.
    """

    def __init__(self, produced: tuple[int, int]) -> None:
        self.produced = list(produced)
        self.reads: list[tuple[int, int]] = []
        self.index_reads = 0

    def __len__(self) -> int:
        return PAGE_SIZE

    def __getitem__(self, where: slice | int) -> Any:
        if isinstance(where, int):  # an index, in the words that `cast` made
            if where not in (REQ_PROD, RSP_PROD):
                return 0
            self.index_reads += 1
            return self.produced.pop(0) if len(self.produced) > 1 else self.produced[0]
        start, stop, _ = where.indices(PAGE_SIZE)
        if start == 0:
            return self  # the header, to be cast
        self.reads.append((start, stop))
        return bytes([len(self.reads)]) * (stop - start)

    def __setitem__(self, where: slice | int, value: object) -> None:
        del where, value

    def cast(self, code: str) -> Flipping:
        """As a memoryview's: the indices are read as native 32-bit words, never bytewise (C.5)."""
        assert code == "I"
        return self

    def view(self) -> memoryview:
        """Itself, as the type that a ring takes."""
        return cast("memoryview", self)


def test_a_backend_fetches_index_and_slots_once() -> None:
    """XSA-155: req_prod is read once, then each slot once; a frontend that changes both meanwhile gains nothing."""
    pages = Flipping((5, 1000))
    run, count = BackRing(pages.view(), SLOT).take()
    assert (pages.index_reads, count) == (1, 5)
    assert pages.reads == [(HEADER_BYTES, HEADER_BYTES + 5 * SLOT)]
    assert run == b"\x01" * (5 * SLOT)


def test_a_frontend_fetches_index_and_slots_once() -> None:
    """The other way round: rsp_prod is read once, then each slot once."""
    pages = Flipping((5, 1000))
    front = FrontRing(pages.view(), SLOT)
    for _ in range(7):
        front.put(b"")
    front.publish()
    run, count = front.take()
    assert (pages.index_reads, count) == (1, 5)
    assert pages.reads == [(HEADER_BYTES, HEADER_BYTES + 5 * SLOT)]
    assert run == b"\x01" * (5 * SLOT)


def test_what_was_taken_is_private() -> None:
    """A taken run is bytes of our own: scribbling over the ring afterwards does not change it."""
    ring = Ring()
    ring.ask(4)
    run, _ = ring.back.take()
    ring.memory[HEADER_BYTES:] = b"\xff" * (PAGE_SIZE - HEADER_BYTES)
    assert isinstance(run, bytes)
    assert names(run) == [0, 1, 2, 3]


def test_a_message_longer_than_its_slot_is_our_bug() -> None:
    """It would overwrite its neighbour: it is refused on both ends, and nothing is written."""
    ring = Ring(fill=0xAA)
    with pytest.raises(LocalProtocolError, match=f"in a slot of {SLOT}"):
        ring.front.put(bytes(SLOT + 1))
    with pytest.raises(LocalProtocolError, match=f"in a slot of {SLOT}"):
        ring.back.put(bytes(SLOT + 1))
    assert ring.slot(0) == ring.slot(1) == b"\xaa" * SLOT
