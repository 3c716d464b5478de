"""Both ends of one small ring, in one process."""

from __future__ import annotations

import struct

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
