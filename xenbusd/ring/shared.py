"""The two ends of a ring over mapped pages: the only code that reads or writes shared indices and slots.

Everything the other end writes is hostile. An index is read once into an int. Slots are copied out once, as a run
of consecutive ones, to private bytes, and are never read from the ring again. A producer index that cannot be true is
refused (T32).

Indices are accessed through `memoryview.cast("I")`, which CPython does as one aligned 32-bit access; `struct` with a
fixed byte order would do it bytewise, and tear.

Source: xen/include/public/io/ring.h.
"""

from __future__ import annotations

import sys

from xenbusd.errors import LocalProtocolError, RingError
from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.barrier import ORDERED, fence
from xenbusd.ring.journal import Journal
from xenbusd.ring.layout import HEADER_BYTES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, U32, slots
from xenbusd.ring.polling import POLLS

assert sys.byteorder == "little", "Xen's ring indices are little-endian on every machine it runs on"


class _Ring:
    """The part common to both ends: the words of the header and the slots behind it.

    Args:
        view: the ring's pages, writable, page-aligned.
        slot_bytes: the stride.
    """

    __slots__ = ("_mask", "_slot_bytes", "_view", "_words", "size")

    def __init__(self, view: memoryview, slot_bytes: int) -> None:
        self._view = view
        self._words = view[:HEADER_BYTES].cast("I")
        self._slot_bytes = slot_bytes
        self.size = slots(len(view) // PAGE_SIZE, slot_bytes)
        """Slots in the ring: a power of two."""
        self._mask = self.size - 1

    def _copy_run(self, index: int, count: int) -> tuple[bytes, int]:
        """Copy up to `count` slots from `index` on, stopping at the end of the array."""
        first = index & self._mask
        count = min(count, self.size - first)
        start = HEADER_BYTES + first * self._slot_bytes
        return bytes(self._view[start : start + count * self._slot_bytes]), count

    def release(self) -> None:
        """Release the pages, so that they can be unmapped. The ring cannot be used after that."""
        self._words.release()
        self._view.release()

    def indices(self) -> dict[str, int]:
        """The four shared indices, by name, for display."""
        words = self._words
        return {
            "req_prod": words[REQ_PROD],
            "req_event": words[REQ_EVENT],
            "rsp_prod": words[RSP_PROD],
            "rsp_event": words[RSP_EVENT],
        }


class BackRing(_Ring):
    """The backend's end: takes requests, puts responses.

    Args:
        view: the mapped ring; its slices are released with `release`.
        slot_bytes: the stride.
        attach: adopt a ring that another backend of this device has served: begin at its last published response,
            as Linux's BACK_RING_ATTACH does. Otherwise both of our counters begin at 0.
        journal: records each batch of responses, so that the next daemon can attach after we were killed. When
            attaching, the responses that it holds as unpublished are put again; the first `publish` shows them.

    Raises:
        RingError: attached to a ring that holds more requests than it has slots, or that does not match its journal.
    """

    __slots__ = ("_answers", "_journal", "_published", "req_cons")

    def __init__(
        self, view: memoryview, slot_bytes: int, *, attach: bool = False, journal: Journal | None = None
    ) -> None:
        super().__init__(view, slot_bytes)
        start = self._words[RSP_PROD] if attach else 0
        if attach and ((produced := self._words[REQ_PROD]) - start) & U32 > self.size:
            self._words.release()  # the caller unmaps the pages now
            raise RingError(f"the frontend's req_prod {produced} is more than {self.size} ahead of rsp_prod {start}")
        self._answers: list[bytes] = []
        self._journal = journal
        if attach and journal is not None:
            try:
                self._answers = journal.unpublished(start, self.size, slot_bytes)
            except ValueError as error:
                self._words.release()
                raise RingError(str(error)) from None
        self._published = start
        self.req_cons = (start + len(self._answers)) & U32
        """The next request to take."""

    def take(self) -> tuple[bytes, int]:
        """Copy out the next run of requests.

        Returns:
            Their slots, end to end, and how many. (b"", 0) when there are none. A second call may find more:
            the run stops where the array ends.

        Raises:
            RingError: the frontend claims more requests than there are slots free of unanswered ones.
        """
        produced = self._words[REQ_PROD]
        count = (produced - self.req_cons) & U32
        if not count:
            return b"", 0
        if count + self.unanswered > self.size:  # counted from rsp_prod, a producer that went back would pass
            raise RingError(
                f"the frontend's req_prod {produced} is impossible: {self.req_cons} is next, "
                f"and {self.unanswered} of {self.size} slots await their answers"
            )
        if not ORDERED:
            fence()
        run, count = self._copy_run(self.req_cons, count)
        self.req_cons = (self.req_cons + count) & U32
        return run, count

    def put(self, response: bytes) -> None:
        """Answer the next request; `publish` writes it, whole, into its slot.

        Raises:
            LocalProtocolError: it does not fit a slot.
        """
        if len(response) > self._slot_bytes:
            raise LocalProtocolError(f"a response of {len(response)} bytes in a slot of {self._slot_bytes}")
        self._answers.append(response)

    def put_all(self, responses: list[bytes]) -> None:
        """Answer the next requests, each as `put` does; the caller knows that they fit."""
        self._answers += responses

    def publish(self) -> bool:
        """Write all responses put so far and publish them. Return whether the frontend asked to be notified of them."""
        answers = self._answers
        if not answers:
            return False
        old = self._published
        new = (old + len(answers)) & U32
        journal = self._journal
        if journal is not None:
            journal.begin(old, answers)
        view, mask, stride, index = self._view, self._mask, self._slot_bytes, old
        for answer in answers:
            start = HEADER_BYTES + (index & mask) * stride
            view[start : start + len(answer)] = answer
            index += 1
        if not ORDERED:
            fence()
        self._words[RSP_PROD] = new
        self._published = new
        if journal is not None:
            journal.end()
        self._answers = []
        fence()  # the store above, then the load below: the one order that x86 does not give
        return (new - self._words[RSP_EVENT]) & U32 < (new - old) & U32

    def rest(self) -> bool:
        """Ask to be notified of the next request. Return False if one has come in meanwhile: then do not sleep."""
        self._words[REQ_EVENT] = (self.req_cons + 1) & U32
        fence()  # (T62)
        return self._words[REQ_PROD] == self.req_cons

    def poll(self, times: int = POLLS) -> bool:
        """Read `req_prod` up to so many times in a row, some 20 ns each. Return whether another request has come."""
        words, taken = self._words, self.req_cons
        for _ in range(times):  # noqa: SIM110  # a generator would take half as long again
            if words[REQ_PROD] != taken:
                return True
        return False

    @property
    def taken(self) -> int:
        """A number that changes with every run that is taken."""
        return self.req_cons

    @property
    def rsp_prod(self) -> int:
        """Where the next response goes."""
        return (self._published + len(self._answers)) & U32

    @property
    def unanswered(self) -> int:
        """Requests taken and not yet answered."""
        return (self.req_cons - self._published - len(self._answers)) & U32


class FrontRing(_Ring):
    """The frontend's end: puts requests, takes responses. Makes the shared header fresh (T63).

    Args:
        view: our own shared pages, zeroed.
        slot_bytes: the stride.
    """

    __slots__ = ("_published", "req_prod", "rsp_cons")

    def __init__(self, view: memoryview, slot_bytes: int) -> None:
        super().__init__(view, slot_bytes)
        self._words[REQ_EVENT] = self._words[RSP_EVENT] = 1
        self.req_prod = 0
        """Where the next request goes; published by `publish`."""
        self.rsp_cons = 0
        """The next response to take."""
        self._published = 0

    @property
    def taken(self) -> int:
        """A number that changes with every run that is taken."""
        return self.rsp_cons

    @property
    def free(self) -> int:
        """Slots that a request may go into now."""
        return self.size - ((self.req_prod - self.rsp_cons) & U32)

    def put(self, request: bytes) -> None:
        """Write one request into the next slot; the caller has checked `free`. Nobody sees it before `publish`.

        Raises:
            LocalProtocolError: it does not fit a slot.
        """
        if len(request) > self._slot_bytes:
            raise LocalProtocolError(f"a request of {len(request)} bytes in a slot of {self._slot_bytes}")
        index = self.req_prod
        start = HEADER_BYTES + (index & self._mask) * self._slot_bytes
        self._view[start : start + len(request)] = request
        self.req_prod = (index + 1) & U32

    def publish(self) -> bool:
        """Publish all requests put so far. Return whether the backend asked to be notified of them."""
        new, old = self.req_prod, self._published
        if new == old:
            return False
        if not ORDERED:
            fence()
        self._words[REQ_PROD] = new
        self._published = new
        fence()
        return (new - self._words[REQ_EVENT]) & U32 < (new - old) & U32

    def take(self) -> tuple[bytes, int]:
        """Copy out the next run of responses: as `BackRing.take`.

        Raises:
            RingError: the backend claims more responses than there are requests.
        """
        produced = self._words[RSP_PROD]
        count = (produced - self.rsp_cons) & U32
        if not count:
            return b"", 0
        if count > (self._published - self.rsp_cons) & U32:
            raise RingError(f"the backend's rsp_prod {produced} answers requests that were never made")
        if not ORDERED:
            fence()
        run, count = self._copy_run(self.rsp_cons, count)
        self.rsp_cons = (self.rsp_cons + count) & U32
        return run, count

    def rest(self) -> bool:
        """Ask to be notified of the next response. Return False if one has come in meanwhile: then do not sleep."""
        self._words[RSP_EVENT] = (self.rsp_cons + 1) & U32
        fence()
        return self._words[RSP_PROD] == self.rsp_cons
