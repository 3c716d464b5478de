"""Both ends of a ring over one buffer, against deques: nothing lost, repeated or reordered, and no wake-up lost."""

from __future__ import annotations

import struct
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xenbusd.errors import RingError
from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.layout import HEADER_BYTES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, U32, ahead, wants_notify
from xenbusd.ring.shared import BackRing, FrontRing

NAME = struct.Struct("<I")

starts = st.one_of(st.integers(U32 - 20, U32), st.integers(0, 20), st.integers(0, U32))
strides = st.sampled_from([8, 12, 64, 112, 1000, 2016, 4032])


def make(memory: bytearray, stride: int, start: int) -> tuple[FrontRing, BackRing]:
    """Both ends of a ring through which `start` messages have gone already."""
    front = FrontRing(memoryview(memory), stride)
    struct.pack_into("<4I", memory, 0, start, (start + 1) & U32, start, (start + 1) & U32)
    front.req_prod = front.rsp_cons = front._published = start
    return front, BackRing(memoryview(memory), stride, attach=True)


class RingMachine(RuleBasedStateMachine):
    """Any interleaving of put, publish, take and rest at both ends. The model: a deque for each stage on the way."""

    @initialize(start=starts, stride=strides)
    def make(self, start: int, stride: int) -> None:
        """A ring that has been in use for a while."""
        self.memory = bytearray(PAGE_SIZE)
        self.stride = stride
        self.front, self.back = make(self.memory, stride, start)
        self.next_name = 0
        self.requests_put: deque[int] = deque()
        self.requests_shown: deque[int] = deque()
        self.requests_taken: deque[int] = deque()
        self.responses_put: deque[int] = deque()
        self.responses_shown: deque[int] = deque()
        self.back_sleeps = self.front_sleeps = False

    @precondition(lambda self: self.front.free > 0)
    @rule()
    def put_request(self) -> None:
        """The frontend writes a request."""
        self.front.put(NAME.pack(self.next_name))
        self.requests_put.append(self.next_name)
        self.next_name += 1

    @rule()
    def publish_requests(self) -> None:
        """The frontend shows them; a backend that sleeps must be woken by it."""
        notify = self.front.publish()
        if not self.requests_put:
            assert notify is False
        elif self.back_sleeps:
            assert notify is True, "lost wake-up: the backend sleeps, and nobody will notify it"
            self.back_sleeps = False
        self.requests_shown += self.requests_put
        self.requests_put.clear()

    @precondition(lambda self: not self.back_sleeps)
    @rule()
    def take_requests(self) -> None:
        """The backend takes a run: some, if there are any."""
        run, count = self.back.take()
        assert bool(count) == bool(self.requests_shown)
        for start in range(0, len(run), self.stride):
            name = NAME.unpack_from(run, start)[0]
            assert name == self.requests_shown.popleft()
            self.requests_taken.append(name)
        assert len(run) == count * self.stride

    @precondition(lambda self: len(self.requests_taken) > 0)
    @rule(data=st.data())
    def put_response(self, data: st.DataObject) -> None:
        """The backend answers any of them."""
        name = data.draw(st.sampled_from(list(self.requests_taken)))
        self.requests_taken.remove(name)
        self.back.put(NAME.pack(name))
        self.responses_put.append(name)

    @rule()
    def publish_responses(self) -> None:
        """The backend shows them; a frontend that sleeps must be woken by it."""
        notify = self.back.publish()
        if not self.responses_put:
            assert notify is False
        elif self.front_sleeps:
            assert notify is True, "lost wake-up: the frontend sleeps, and nobody will notify it"
            self.front_sleeps = False
        self.responses_shown += self.responses_put
        self.responses_put.clear()

    @precondition(lambda self: not self.front_sleeps)
    @rule()
    def take_responses(self) -> None:
        """The frontend takes a run: some, if there are any."""
        run, count = self.front.take()
        assert bool(count) == bool(self.responses_shown)
        for start in range(0, len(run), self.stride):
            assert NAME.unpack_from(run, start)[0] == self.responses_shown.popleft()
        assert len(run) == count * self.stride

    @precondition(lambda self: not self.back_sleeps)
    @rule()
    def rest_back(self) -> None:
        """The backend goes to sleep, unless there is something for it."""
        self.back_sleeps = self.back.rest()
        assert self.back_sleeps is not bool(self.requests_shown)

    @precondition(lambda self: not self.front_sleeps)
    @rule()
    def rest_front(self) -> None:
        """The frontend goes to sleep, unless there is something for it."""
        self.front_sleeps = self.front.rest()
        assert self.front_sleeps is not bool(self.responses_shown)

    @rule()
    def attach_again(self) -> None:
        """Another backend adopts the ring: requests taken and not published as answered come again (T63)."""
        again = BackRing(memoryview(self.memory), self.stride, attach=True)
        assert ahead(again.req_cons, self.back.rsp_prod) == -len(self.responses_put) & U32
        again.release()

    @invariant()
    def the_counters_agree(self) -> None:
        """Free slots, unanswered requests and messages on their way add up to the size of the ring."""
        owed = len(self.requests_taken)
        on_the_way = len(self.requests_put) + len(self.requests_shown)
        coming_back = len(self.responses_put) + len(self.responses_shown)
        assert self.back.unanswered == owed
        assert self.front.free == self.front.size - owed - on_the_way - coming_back

    @invariant()
    def nobody_sleeps_on_work(self) -> None:
        """An end that has gone to sleep has nothing waiting for it."""
        assert not (self.back_sleeps and self.requests_shown)
        assert not (self.front_sleeps and self.responses_shown)


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(old=starts, more=st.integers(0, 512), event=st.one_of(starts, st.integers(0, U32)))
def test_publish_notifies_as_ring_h_says(old: int, more: int, event: int) -> None:
    """Both ends decide as `layout.wants_notify`, which is RING_PUSH_*_AND_CHECK_NOTIFY."""
    memory = bytearray(16 * PAGE_SIZE)
    front, back = make(memory, 112, old)
    words = memoryview(memory)[:HEADER_BYTES].cast("I")
    words[REQ_EVENT] = words[RSP_EVENT] = event
    for _ in range(more):
        front.put(b"")
        back.put(b"")
    expected = more > 0 and wants_notify((old + more) & U32, old, event)
    assert front.publish() is expected
    assert back.publish() is expected


@given(old=starts, more=st.integers(0, 512), event=starts)
def test_notify_means_that_the_event_lies_on_the_way(old: int, more: int, event: int) -> None:
    """`wants_notify` says whether one of the indices passed on the way is the event index: by walking it."""
    passed = {(old + step) & U32 for step in range(1, more + 1)}
    assert wants_notify((old + more) & U32, old, event) is (event in passed)


@settings(max_examples=300)
@given(
    start=starts,
    asked=st.integers(0, 32),
    taken=st.booleans(),
    answered=st.integers(0, 32),
    req_prod=st.one_of(starts, st.integers(0, U32)),
    near=st.one_of(st.none(), st.integers(-40, 40)),
)
def test_any_request_producer_is_refused_or_safe(
    start: int, asked: int, taken: bool, answered: int, req_prod: int, near: int | None
) -> None:
    """Whatever the frontend writes: refused, or never more requests under way than there are slots (XSA-38, XSA-86)."""
    memory = bytearray(PAGE_SIZE)
    front, back = make(memory, 112, start)
    for _ in range(asked):
        front.put(b"")
    front.publish()
    while taken and back.take()[1]:
        pass
    for _ in range(min(answered, back.unanswered)):
        back.put(b"")
    words = memoryview(memory)[:HEADER_BYTES].cast("I")
    words[REQ_PROD] = req_prod if near is None else (back.req_cons + near) & U32
    try:
        while back.take()[1]:
            assert back.unanswered <= back.size
    except RingError:
        return
    assert words[REQ_PROD] == back.req_cons
    assert ahead(words[REQ_PROD], back.rsp_prod) <= back.size


@settings(max_examples=300)
@given(start=starts, asked=st.integers(0, 32), rsp_prod=st.one_of(starts, st.integers(0, U32)))
def test_any_response_producer_is_refused_or_safe(start: int, asked: int, rsp_prod: int) -> None:
    """Whatever the backend writes: refused, or no more responses taken than requests were made."""
    memory = bytearray(PAGE_SIZE)
    front, _ = make(memory, 112, start)
    for _ in range(asked):
        front.put(b"")
    front.publish()
    memoryview(memory)[:HEADER_BYTES].cast("I")[RSP_PROD] = rsp_prod
    taken = 0
    try:
        while count := front.take()[1]:
            taken += count
    except RingError:
        return
    assert taken <= asked
    assert front.free == front.size - asked + taken
