"""A backend is killed between any two of its stores, and the next one adopts the ring."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from xenbusd.errors import RingError
from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.journal import Flags, Journal, size_bytes
from xenbusd.ring.layout import HEADER_BYTES, REQ_PROD, RSP_PROD, U32
from xenbusd.ring.shared import BackRing, FrontRing

SLOT = 112
SIZE = 32
IDENTITY = 0x1234


class KilledError(Exception):
    """The process was killed."""


class Mortal:
    """Memory that kills the process at its store number `at`, counted over all memory that shares a clock."""

    def __init__(self, memory: memoryview, clock: list[int]) -> None:
        self.memory = memory
        self.clock = clock

    def __getitem__(self, key: Any) -> Any:
        return self.memory[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.clock[0] == 0:
            raise KilledError
        self.clock[0] -= 1
        self.memory[key] = value


class Pair:
    """A ring and its journal, whose backend may die."""

    def __init__(self, start: int) -> None:
        self.ring = memoryview(bytearray(PAGE_SIZE))
        self.ledger = memoryview(bytearray(size_bytes(SIZE, SLOT)))
        self.front = FrontRing(self.ring, SLOT)
        words = self.ring[:HEADER_BYTES].cast("I")
        words[REQ_PROD] = words[RSP_PROD] = start
        self.front.req_prod = self.front.rsp_cons = self.front._published = start
        self.carried_out: list[int] = []
        Journal(self.ledger, IDENTITY, fresh=True, flags=Flags.IN_ORDER)

    def backend(self) -> BackRing:
        """The next backend process."""
        journal = Journal(self.ledger, IDENTITY, fresh=False)
        return BackRing(self.ring, SLOT, attach=True, journal=journal)

    def ask(self, first: int, count: int) -> None:
        """Make requests with the ids from `first` on."""
        for id in range(first, first + count):
            self.front.put(struct.pack("<I", id))
        self.front.publish()

    def serve(self, back: BackRing, most: int) -> None:
        """Carry out at most `most` requests, put their answers, and publish them."""
        while most:
            run, count = back.take()
            if not count:
                break
            for at in range(count):
                (id,) = struct.unpack_from("<I", run, at * SLOT)
                self.carried_out.append(id)
                back.put(struct.pack("<I12x", id ^ 0xFFFF))
            most -= count
        back.publish()

    def answers(self) -> list[int]:
        """The ids that have been answered since the last call."""
        ids = []
        while True:
            run, count = self.front.take()
            if not count:
                return ids
            ids += [struct.unpack_from("<I", run, at * SLOT)[0] ^ 0xFFFF for at in range(count)]


def mortal(back: BackRing, stores: int) -> list[int]:
    """Let a backend make at most so many stores. Return how many of them are left."""
    clock = [stores]
    for owner in (back, back._journal):
        for name in ("_view", "_words"):
            setattr(owner, name, Mortal(getattr(owner, name), clock))
    return clock


def stores_of_a_batch() -> int:
    """How many stores publishing takes, for the batch of the test below."""
    pair = Pair(0)
    back = pair.backend()
    pair.ask(0, 7)
    clock = mortal(back, 1000)
    pair.serve(back, SIZE)
    return 1000 - clock[0]


@pytest.mark.parametrize("start", [0, 29, U32 - 3])
@pytest.mark.parametrize("stores", range(stores_of_a_batch() + 1))
def test_every_request_is_answered_once_in_order(start: int, stores: int) -> None:
    """Killed after any number of stores while it publishes: the next backend answers every unanswered request once and
    in order, and parses nothing else as a request.
    """
    pair = Pair(start)
    back = pair.backend()
    pair.ask(0, 5)
    pair.serve(back, SIZE)
    assert pair.answers() == [0, 1, 2, 3, 4]

    pair.ask(5, 7)
    mortal(back, stores)
    killed = False
    try:
        pair.serve(back, SIZE)
    except KilledError:
        killed = True
    assert killed == (stores < stores_of_a_batch())

    seen = pair.answers()
    pair.ask(12, 20 - len(seen))  # as many as the frontend sees free slots for, at least
    heir = pair.backend()
    heir.publish()
    pair.serve(heir, SIZE)
    total = 32 - len(seen)
    assert seen + pair.answers() == list(range(5, total))
    assert set(pair.carried_out) == set(range(total))


@pytest.mark.parametrize("stores", range(stores_of_a_batch() + 1))
def test_the_next_backend_may_be_killed_as_well(stores: int) -> None:
    """The second backend dies while it publishes the first one's batch: the third one finishes it."""
    pair = Pair(100)
    back = pair.backend()
    pair.ask(0, 7)
    mortal(back, 5)  # into the middle of the slots
    with pytest.raises(KilledError):
        pair.serve(back, SIZE)
    heir = pair.backend()
    mortal(heir, stores)
    try:
        heir.publish()
    except KilledError:
        heir = pair.backend()
        heir.publish()
    pair.serve(pair.backend(), SIZE)
    assert pair.answers() == list(range(7))


def test_a_ring_that_does_not_go_with_its_journal_is_refused() -> None:
    """The frontend has changed rsp_prod, in the middle of a batch: the ring is not adopted."""
    pair = Pair(0)
    back = pair.backend()
    pair.ask(0, 7)
    mortal(back, 5)
    with pytest.raises(KilledError):
        pair.serve(back, SIZE)
    pair.ring[:HEADER_BYTES].cast("I")[RSP_PROD] = 3
    with pytest.raises(RingError, match="7 answers from 0 on"):
        pair.backend()


def test_another_rings_journal_is_refused() -> None:
    """A journal is for one set of grants and one port."""
    pair = Pair(0)
    with pytest.raises(ValueError, match="not the journal of this ring"):
        Journal(pair.ledger, IDENTITY + 1, fresh=False)
    with pytest.raises(ValueError, match="not the journal of this ring"):
        Journal(memoryview(bytearray(PAGE_SIZE)), IDENTITY, fresh=False)
