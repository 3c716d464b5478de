"""A ring's journal, by which a new backend daemon can adopt the ring of one that was killed.

A backend that answers in the order of the requests needs little: the slots from `rsp_prod` on still hold the requests
that are not answered. That fails only while answers are being written over requests, and for that moment the journal
holds the batch. Publishing takes five steps, each made of whole stores that a killed process leaves done or not done,
in this order, on any machine:

    1. the answers, into the journal          2. `base` and `count`          3. the answers, into the slots
    4. `rsp_prod`                             5. `count` = 0

The next daemon finds `count` 0: nothing was being published. Or `rsp_prod` at `base`: step 4 was not reached, and
the answers are written again from the journal; their requests have been carried out. Or `rsp_prod` at `base + count`:
all is published. We write nothing else, so in any other case the ring is not trusted.

The journal lies in memory that outlives the process: a file on /run. It need not outlive the host; the guests do not.

Decision D3 in docs/decisions.md has the reasons and the cost.
"""

from __future__ import annotations

from enum import IntFlag

from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.layout import U32

MAGIC = 0x676E6972
"""The bytes "ring"."""
VERSION = 1
HEADER_BYTES = 64

_MAGIC, _VERSION, _FLAGS, _BASE, _COUNT, _STRIDE, _IDENTITY = range(7)
"""Words of the header."""


class Flags(IntFlag):
    """Promises of the daemon that wrote the journal."""

    IN_ORDER = 1
    """Requests are answered in order."""
    LEFT = 2
    """The daemon stopped in order, with every request that it took answered."""


def size_bytes(slots: int, slot_bytes: int) -> int:
    """How much memory the journal of a ring needs: whole pages."""
    return -(-(HEADER_BYTES + slots * slot_bytes) // PAGE_SIZE) * PAGE_SIZE


class Journal:
    """A journal over memory.

    Args:
        view: `size_bytes` of memory, writable, page-aligned.
        identity: a number for this ring, from its grants and its port; a journal in the memory must have the same.
        fresh: write a new header, rather than read the one in the memory.
        flags: for a fresh one; see `Flags`.

    Raises:
        ValueError: the memory holds no journal of this ring.
    """

    def __init__(self, view: memoryview, identity: int, *, fresh: bool, flags: int = 0) -> None:
        self._view = view
        self._words = view[:HEADER_BYTES].cast("I")
        words = self._words
        if fresh:
            for word, value in enumerate((MAGIC, VERSION, int(flags), 0, 0, 0, identity & U32)):
                words[word] = value
        elif (words[_MAGIC], words[_VERSION], words[_IDENTITY]) != (MAGIC, VERSION, identity & U32):
            self.release()  # the caller closes the memory under the view now
            raise ValueError("not the journal of this ring")

    @property
    def flags(self) -> Flags:
        """The promises."""
        return Flags(self._words[_FLAGS])

    @flags.setter
    def flags(self, flags: Flags) -> None:
        """Write the promises."""
        self._words[_FLAGS] = int(flags)

    def begin(self, base: int, answers: list[bytes]) -> None:
        """Steps 1 and 2: `answers`, all of one length, are about to go into the slots from `base` on."""
        words = self._words
        batch = b"".join(answers)
        self._view[HEADER_BYTES : HEADER_BYTES + len(batch)] = batch
        words[_STRIDE] = len(answers[0])
        words[_BASE] = base
        words[_COUNT] = len(answers)

    def end(self) -> None:
        """Step 5: the batch is published."""
        self._words[_COUNT] = 0

    def unpublished(self, rsp_prod: int, slots: int, slot_bytes: int) -> list[bytes]:
        """Return the answers that must be put again, given the ring's `rsp_prod`. The journal keeps them, since the
        caller may be killed before it has published them.

        Raises:
            ValueError: `rsp_prod` and the journal contradict each other.
        """
        words = self._words
        base, count, stride = words[_BASE], words[_COUNT], words[_STRIDE]
        if not count:
            return []
        if count > slots or not 0 < stride <= slot_bytes or rsp_prod not in (base, (base + count) & U32):
            raise ValueError(f"rsp_prod is {rsp_prod}, with {count} answers from {base} on in the journal")
        if rsp_prod != base:
            return []
        starts = range(HEADER_BYTES, HEADER_BYTES + count * stride, stride)
        return [bytes(self._view[start : start + stride]) for start in starts]

    def release(self) -> None:
        """Release the memory. Idempotent."""
        self._words.release()
        self._view.release()
