"""xenbusd.ring.shared: the two ends of a ring over one buffer, and the indices that each refuses."""

from __future__ import annotations

import struct

import pytest

from tests.doubles.small_ring import SIZE, SLOT, Ring, names, take_all
from xenbusd.errors import RingError
from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.layout import U32
from xenbusd.ring.shared import BackRing, FrontRing

# -- the layout ----------------------------------------------------------------------------------------------------


def test_a_frontend_makes_the_header_fresh() -> None:
    """T63: a new ring's event indices are 1, its producers 0."""
    memory = bytearray(PAGE_SIZE)
    FrontRing(memoryview(memory), SLOT)
    assert struct.unpack_from("<4I", memory) == (0, 1, 0, 1)


def test_messages_go_where_ring_h_puts_them() -> None:
    """Slot n lies at 64 + n * stride, and the indices are little-endian words of the header."""
    ring = Ring()
    ring.front.put(b"\xab" * SLOT)
    ring.front.put(b"\xcd" * SLOT)
    ring.front.publish()
    assert ring.memory[:4] == b"\x02\0\0\0"
    assert ring.memory[64 : 64 + SLOT] == b"\xab" * SLOT
    assert ring.memory[64 + SLOT : 64 + 2 * SLOT] == b"\xcd" * SLOT
    assert ring.memory[64 + 2 * SLOT :] == bytes(PAGE_SIZE - 64 - 2 * SLOT)


def test_the_size_follows_the_pages() -> None:
    """A ring of several pages is one array of slots behind one header."""
    assert BackRing(memoryview(bytearray(PAGE_SIZE)), SLOT).size == 32
    assert BackRing(memoryview(bytearray(16 * PAGE_SIZE)), SLOT).size == 512


def test_a_response_overwrites_the_slot_it_is_given_and_no_other() -> None:
    """XSA-216: of a slot full of old bytes none that the response covers is left, and none beyond it is touched."""
    ring = Ring(fill=0xAA)
    ring.ask(3)
    ring.back.take()
    before = ring.slot(1)
    ring.back.put(bytes(16))
    ring.back.publish()
    assert ring.slot(0) == bytes(16) + b"\xaa" * (SLOT - 16)
    assert ring.slot(1) == before


def test_indices_for_people() -> None:
    """`indices` names the four words of the header."""
    ring = Ring()
    ring.ask(2)
    assert ring.back.indices() == {"req_prod": 2, "req_event": 1, "rsp_prod": 0, "rsp_event": 1}


def test_release_lets_go_of_the_pages() -> None:
    """After `release` of both ends the memory can be resized, so unmapped."""
    memory = bytearray(PAGE_SIZE)
    front, back = FrontRing(memoryview(memory), SLOT), BackRing(memoryview(memory), SLOT)
    front.release()
    with pytest.raises(BufferError):
        memory.clear()
    back.release()
    memory.clear()


# -- requests and responses ----------------------------------------------------------------------------------------


def test_nothing_is_seen_before_it_is_published() -> None:
    """`put` fills a slot; only `publish` moves the shared index."""
    ring = Ring()
    ring.front.put(b"a")
    assert ring.back.take() == (b"", 0)
    ring.front.publish()
    assert ring.back.take()[1] == 1
    ring.back.put(b"b")
    assert ring.front.take() == (b"", 0)
    ring.back.publish()
    assert ring.front.take()[1] == 1


def test_a_run_ends_where_the_array_ends() -> None:
    """Slots on both sides of the end of the array come in two runs, in order."""
    ring = Ring(SIZE - 2)
    ring.ask(5)
    first, count = ring.back.take()
    assert (names(first), count) == ([30, 31], 2)
    second, count = ring.back.take()
    assert (names(second), count) == ([32, 33, 34], 3)
    assert ring.back.take() == (b"", 0)


@pytest.mark.parametrize("start", [0, U32 - 40, U32 - 3, U32])
def test_both_ways_across_the_u32_wrap(start: int) -> None:
    """Counters run freely over 2^32; nothing is lost, repeated or refused there."""
    ring = Ring(start)
    expected = [(start + number) & U32 for number in range(3 * SIZE)]
    asked: list[int] = []
    answered: list[int] = []
    for _ in range(6):
        ring.ask(SIZE // 2)
        asked += take_all(ring.back)
        ring.answer(SIZE // 2)
        answered += take_all(ring.front)
    assert asked == answered == expected


def test_free_counts_the_slots_without_a_request() -> None:
    """A slot is free again when the response in it has been taken, not when it has been put."""
    ring = Ring(U32 - 1)
    assert ring.front.free == SIZE
    ring.ask(3)
    assert ring.front.free == SIZE - 3
    ring.back.take()
    ring.answer(2)
    assert ring.front.free == SIZE - 3
    take_all(ring.front)
    assert ring.front.free == SIZE - 1


def test_unanswered_counts_what_was_taken_and_not_answered() -> None:
    """A full ring may be taken whole, across the wrap; each answer counts one down."""
    ring = Ring(U32 - 7)
    ring.ask(SIZE)
    take_all(ring.back)
    assert ring.back.unanswered == SIZE
    ring.answer(SIZE)
    assert ring.back.unanswered == 0


# -- notifications -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, U32 - 1])
def test_the_first_message_of_a_fresh_ring_notifies(start: int) -> None:
    """Event indices begin one ahead, so neither end misses the first message."""
    ring = Ring(start)
    ring.front.put(b"")
    assert ring.front.publish() is True
    ring.back.take()
    ring.back.put(b"")
    assert ring.back.publish() is True


def test_an_end_that_is_awake_is_not_notified() -> None:
    """Without a `rest` in between, the second message raises no notification (XSA-391: spurious ones are punished)."""
    ring = Ring()
    ring.ask(1)
    ring.front.put(b"")
    assert ring.front.publish() is False
    take_all(ring.back)
    ring.answer(1)
    ring.back.put(b"")
    assert ring.back.publish() is False


def test_an_end_that_rests_is_notified_of_the_next_message() -> None:
    """`rest` at an empty ring is True, and the next publish on the other end asks for a notification."""
    ring = Ring(U32)
    ring.ask(3)
    take_all(ring.back)
    assert ring.back.rest() is True
    ring.front.put(b"")
    assert ring.front.publish() is True
    ring.answer(2)
    take_all(ring.front)
    assert ring.front.rest() is True
    ring.back.put(b"")
    assert ring.back.publish() is True


def test_a_batch_notifies_once() -> None:
    """One publish of many messages decides once, and counts the whole batch."""
    ring = Ring()
    take_all(ring.back)
    ring.back.rest()
    for _ in range(SIZE):
        ring.front.put(b"")
    assert ring.front.publish() is True
    assert ring.front.publish() is False


def test_publishing_nothing_does_nothing() -> None:
    """With nothing put since the last time there is nothing to tell, whatever the event index says."""
    ring = Ring()
    assert ring.front.publish() is False
    assert ring.back.publish() is False


def test_rest_sees_what_came_in_meanwhile() -> None:
    """T62: what was published before the event index was set is found by the check after it: do not sleep."""
    ring = Ring()
    ring.ask(1)
    assert ring.back.rest() is False
    take_all(ring.back)
    ring.answer(1)
    assert ring.front.rest() is False
    take_all(ring.front)
    assert ring.back.rest() is True
    assert ring.front.rest() is True


# -- going on with a ring ------------------------------------------------------------------------------------------


def test_attach_goes_on_at_the_last_published_response() -> None:
    """T63: req_cons = rsp_prod_pvt = the ring's rsp_prod: what the last backend left unanswered comes again."""
    ring = Ring(U32 - 4)
    ring.ask(8)
    take_all(ring.back)
    ring.answer(3)
    again = BackRing(memoryview(ring.memory), SLOT, attach=True)
    assert (again.req_cons, again.rsp_prod) == ((U32 - 1) & U32, (U32 - 1) & U32)
    assert sum(again.take()[1] for _ in range(2)) == 5


def test_without_attach_a_backend_begins_at_zero() -> None:
    """A connection that is new begins with a ring that is new, whatever the frontend has written there."""
    ring = Ring(77)
    fresh = BackRing(memoryview(ring.memory), SLOT)
    assert (fresh.req_cons, fresh.rsp_prod) == (0, 0)


def test_attach_to_a_ring_that_cannot_be_is_refused() -> None:
    """T63: refuse if req_prod - rsp_prod > size; and let go of the pages, for they are unmapped now."""
    memory = bytearray(PAGE_SIZE)
    struct.pack_into("<4I", memory, 0, 100 + SIZE + 1, 1, 100, 1)
    view = memoryview(memory)
    with pytest.raises(RingError, match="133 is more than 32 ahead"):
        BackRing(view, SLOT, attach=True)
    view.release()
    memory.clear()  # a BufferError if a slice were still alive
