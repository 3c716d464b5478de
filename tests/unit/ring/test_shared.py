"""xenbusd.ring.shared: the two ends of a ring over one buffer, and what each refuses to believe."""

from __future__ import annotations

import struct
from typing import Any, cast

import pytest

from xenbusd.errors import LocalProtocolError, RingError
from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.layout import HEADER_BYTES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, U32
from xenbusd.ring.shared import BackRing, FrontRing

SLOT = 112
SIZE = 32


class Ring:
    """One page with both ends on it, their counters at `start`."""

    def __init__(self, start: int = 0, *, fill: int = 0) -> None:
        self.memory = bytearray([fill]) * PAGE_SIZE
        self.memory[:HEADER_BYTES] = bytes(HEADER_BYTES)
        self.words = memoryview(self.memory)[:HEADER_BYTES].cast("I")
        self.front = FrontRing(memoryview(self.memory), SLOT)
        self.words[REQ_PROD] = self.words[RSP_PROD] = start
        self.words[REQ_EVENT] = self.words[RSP_EVENT] = (start + 1) & U32
        self.front.req_prod = self.front.rsp_cons = self.front._published = start
        self.back = BackRing(memoryview(self.memory), SLOT, attach=True)

    def slot(self, index: int) -> bytes:
        """The bytes that stand in a slot."""
        start = HEADER_BYTES + index % SIZE * SLOT
        return bytes(self.memory[start : start + SLOT])

    def ask(self, count: int) -> None:
        """Put and publish requests that say which they are."""
        for _ in range(count):
            self.front.put(struct.pack("<I", self.front.req_prod))
        self.front.publish()

    def answer(self, count: int) -> None:
        """Put and publish responses that say which they are."""
        for _ in range(count):
            self.back.put(struct.pack("<I", self.back.rsp_prod))
        self.back.publish()


def names(run: bytes) -> list[int]:
    """Which messages `Ring.ask` or `Ring.answer` put into the slots of a run."""
    return [struct.unpack_from("<I", run, start)[0] for start in range(0, len(run), SLOT)]


def take_all(end: BackRing | FrontRing) -> list[int]:
    """Take runs until there is none."""
    taken: list[int] = []
    while (run := end.take()[0]) != b"":
        taken += names(run)
    return taken


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


# -- hostile ends --------------------------------------------------------------------------------------------------


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
