"""Both ends of a blkif ring over one buffer, and a fake link that looks connected to the driver under test."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.shared import BackRing, FrontRing
from xenbusd_vbd.protocol import X86_64, Abi, Request


class Answer(NamedTuple):
    """A response, parsed."""

    id: int
    op: int
    status: int


class RingPair:
    """A fresh ring of one page: 32 slots.

    Args:
        abi: its layout.
    """

    def __init__(self, abi: Abi = X86_64) -> None:
        self.abi = abi
        memory = bytearray(PAGE_SIZE)
        self.front = FrontRing(memoryview(memory), abi.slot_bytes)
        self.back = BackRing(memoryview(memory), abi.slot_bytes)

    def ask(self, *slots: bytes) -> None:
        """As a frontend, publish requests."""
        for slot in slots:
            self.front.put(slot)
        self.front.publish()

    def answers(self) -> list[Answer]:
        """As a frontend, take the answers that are published."""
        found = []
        while (taken := self.front.take())[1]:
            run, count = taken
            found += [Answer(*self.abi.parse_response(run, at * self.abi.slot_bytes)) for at in range(count)]
        return found

    def requests(self) -> list[Request]:
        """As a backend, take the requests that are published."""
        found = []
        while (taken := self.back.take())[1]:
            run, count = taken
            found += [self.abi.parse_request(run, at * self.abi.slot_bytes) for at in range(count)]
        return found

    def answer(self, *answers: tuple[int, int, int]) -> None:
        """As a backend, publish responses: (id, op, status) each."""
        for id, op, status in answers:
            self.back.put(self.abi.pack_response(id, op, status))
        self.back.publish()


class FakeLink:
    """The part of a `Link` that a data path uses.

    Args:
        ring: its end of the ring.
    """

    def __init__(self, ring: FrontRing | BackRing) -> None:
        self.ring: Any = ring
        self.counters: Counter[str] = Counter()
        self.published = 0
        """How often something new was shown to the other end."""

    def publish(self) -> None:
        """Show what was put into the ring."""
        before = self.ring.indices()
        self.ring.publish()
        self.published += self.ring.indices() != before
