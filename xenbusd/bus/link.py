"""A connected ring: the mapped pages, the event channel, and two ways for a driver to use them.

A fast driver hands `serve` a plain function that drains the ring in a batch. A simple one takes messages one by one:
a backend with `async for request in ring` and `reply`, a frontend with `await ring.call(request)`. Neither way costs
a task for each request, and the fast one costs no future either.

A device may have several queues, each a link of its own: `start` each, then wait with `dev.until_ended()` once.

The store is out of reach here but for `dev`'s own looks: the data path never writes to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from xenbusd.bus.device import Device
from xenbusd.errors import ConnectionEnded, OtherendError, XenbusdError
from xenbusd.host.interface import Grants
from xenbusd.ids import Port
from xenbusd.ring.layout import Req, RingFormat, Rsp
from xenbusd.ring.polling import POLLS, BusyPoll
from xenbusd.ring.shared import BackRing, FrontRing

AnyRing = TypeVar("AnyRing", bound=BackRing | FrontRing)


SPURIOUS_MAX = 16
"""Events in a row that find nothing in the ring, before the other end is slowed down."""

PAUSE_FIRST_S = 0.0005
PAUSE_MAX_S = 0.1

POLL_ROUNDS = 8
"""Times that a look may find something before the rest of the daemon has its turn: well below a millisecond, unless a
guest means to make it long; then some 1.5 ms."""


class Link(Generic[AnyRing]):
    """Common to both ends.

    Args:
        dev: whose link it is.
        ring: our end of the ring.
        port: our event channel port, bound or open.
        slot_bytes: the ring's stride, to walk through what `ring.take` returns.
        release: gives ring pages back; called once, after the port is closed.
    """

    def __init__(self, dev: Device, ring: AnyRing, port: Port, slot_bytes: int, release: Callable[[], None]) -> None:
        self.dev = dev
        self.ring = ring
        self.port = port
        self.grants: Grants = dev.services.host.grants
        self.counters = dev.counters
        self._events = dev.services.host.events
        self._slot_bytes = slot_bytes
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._drain: Callable[[], bool | None] | None = None
        self._open = True
        self._masked = True
        self._spurious = 0

    def notify(self) -> None:
        """Wake the other end."""
        self.counters["notifications"] += 1
        self._events.notify(self.port)

    def publish(self) -> None:
        """Show what was put into the ring, and wake the other end if it asked for that."""
        if self.ring.publish():
            self.notify()

    def start(self, drain: Callable[[], bool | None]) -> None:
        """Call `drain` now and after each notification, until the link is closed. Does not wait.

        Args:
            drain: takes what is in the ring and publishes its answers; returns True if it stopped before the ring
                was empty. Not a coroutine. An error that it raises ends the connection and is raised by
                `dev.until_ended`.
        """
        self._drain = drain
        self.dev.services.ports.attach(self.port, self._woken)
        self._ready()  # a request may have come before the port was bound (T60)

    async def serve(self, drain: Callable[[], bool | None]) -> str:
        """Start, and wait for as long as the connection lasts: for a device of one queue.

        Args:
            drain: as for `start`; an error that it raises is raised here.

        Returns:
            Why it is over. The ring and the port still work, so that work under way can be finished.
        """
        self.start(drain)
        return await self.dev.until_ended()

    def _woken(self) -> None:
        """The other end has notified us. The port stays masked until we say otherwise."""
        self._masked = True
        self._ready()

    def _ready(self) -> None:
        """Drain, and sleep only if the ring is still empty once the other end knows that we do."""
        if self._drain is None:
            return
        try:
            more = self._take_turn(self._drain) or not self.ring.rest()
        except Exception as error:
            self._drain = None  # the port stays masked: a hostile peer cannot wake us again (T61)
            self.dev.fail(error)
            return
        if more:
            self._loop.call_soon(self._ready)  # let the other devices have their turn
        elif self._masked:
            self.unmask()

    def _take_turn(self, drain: Callable[[], bool | None]) -> bool:
        """Drain once. Return whether there may be more."""
        before = self.ring.taken
        more = drain()
        if self.ring.taken != before:
            self._spurious = 0
        return bool(more)

    def unmask(self) -> None:
        """Let the port wake us again: at once, or after a pause if it has woken us for nothing again and again.

        Some events find nothing, since we look on before we sleep. An other end that sends nothing but such gets the
        pause that Linux gives it: twice as long each time, up to a limit (XSA-331, XSA-332; xen_irq_lateeoi).
        """
        self._masked = False
        self._spurious += 1
        excess = self._spurious - SPURIOUS_MAX
        if excess <= 0:
            self._events.unmask(self.port)
        else:
            self.counters["throttled"] = self.counters.get("throttled", 0) + 1
            self._loop.call_later(min(PAUSE_FIRST_S * 2 ** min(excess, 16), PAUSE_MAX_S), self._unmask_late)

    def _unmask_late(self) -> None:
        if self._open:
            self._events.unmask(self.port)

    def describe(self) -> dict[str, object]:
        """Ring indices and port, for `show`."""
        return {"port": self.port, "ring_slots": self.ring.size, **self.ring.indices()}

    def close(self) -> None:
        """Close the port, then give the ring's pages back. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._drain = None
        self.dev.details = None
        self.dev.services.ports.detach(self.port)
        self._events.unbind(self.port)
        self.ring.release()
        self._release()


class BackLink(Link[BackRing], Generic[Req, Rsp]):
    """The backend's end of a connected ring."""

    def __init__(
        self, dev: Device, ring: BackRing, port: Port, format: RingFormat[Req, Rsp], release: Callable[[], None]
    ) -> None:
        super().__init__(dev, ring, port, format.slot_bytes, release)
        self._request = format.request
        self._inbox: deque[Req] = deque()
        self._wake = asyncio.Event()
        self._woken_by_store = False
        self._busy_poll = BusyPoll()

    def _take_turn(self, drain: Callable[[], bool | None]) -> bool:
        """Drain, and look for more before sleeping, as long as that pays.

        Nobody else is kept waiting: there are no looks while other rings are at work as well, nor while requests are
        under way, whose end will wake us; and a round of the event loop after POLL_ROUNDS.
        """
        ports, looking = self.dev.services.ports, self._busy_poll
        alone, ports.latest = ports.latest == self.port, self.port
        if super()._take_turn(drain):
            return True
        if not alone or self.ring.unanswered or not looking.is_worth_it():
            return False
        if self._masked:
            self.unmask()  # now, since the next request need not wait for it
        for _ in range(POLL_ROUNDS):
            if not self.ring.poll(POLLS):
                looking.miss()
                return False
            looking.found()
            if super()._take_turn(drain):
                return True
        return True

    def reply(self, response: Rsp) -> None:
        """Answer a request; it is shown to the frontend when the next request is waited for."""
        self.ring.put(response.pack())

    async def __aiter__(self) -> AsyncIterator[Req]:
        """Yield the requests in order, and end when the connection is over."""
        self.dev.services.ports.attach(self.port, self._wake.set)
        self.dev.on_wake.add(self._look_soon)
        self._woken_by_store = True
        while True:
            self._wake.clear()
            if self._woken_by_store and await self._is_over():
                return
            if self._fill():
                self._spurious = 0
                while self._inbox:
                    yield self._inbox.popleft()
                self.publish()
                await asyncio.sleep(0)  # let the other devices have their turn
            elif self.ring.rest():
                self.unmask()
                await self._wake.wait()

    def _look_soon(self) -> None:
        self._woken_by_store = True
        self._wake.set()

    def _fill(self) -> bool:
        run, count = self.ring.take()
        self.counters["requests"] += count
        for start in range(0, count * self._slot_bytes, self._slot_bytes):
            try:
                self._inbox.append(self._request.unpack(run[start : start + self._slot_bytes]))
            except ValueError as error:
                raise OtherendError(f"a request that cannot be: {error}") from None
        return count > 0

    async def _is_over(self) -> bool:
        dev = self.dev
        self._woken_by_store = False
        dev.forget_hints()
        seen = await dev.observe()
        try:
            await dev.follow(seen)
        except ConnectionEnded:
            self.publish()
            return True
        return False

    def close(self) -> None:
        """Close the link."""
        self.dev.on_wake.discard(self._look_soon)
        super().close()


class FrontLink(Link[FrontRing], Generic[Req, Rsp]):
    """The frontend's end of a connected ring."""

    def __init__(
        self, dev: Device, ring: FrontRing, port: Port, format: RingFormat[Req, Rsp], release: Callable[[], None]
    ) -> None:
        super().__init__(dev, ring, port, format.slot_bytes, release)
        self._response = format.response
        self._waiting: dict[int, asyncio.Future[Rsp]] = {}
        self._free = list(range(ring.size))
        self._room: deque[asyncio.Future[None]] = deque()

    async def call(self, request: Req) -> Rsp:
        """Send one request and return its response. Many calls may be under way; each gets an `id` of its own.

        Args:
            request: a dataclass with a field `id`, whose value is chosen here.

        Raises:
            ConnectionEnded: the connection ended before the answer came.
        """
        while not self._free:
            room = self._loop.create_future()
            self._room.append(room)
            await room
        if not self._open:
            raise ConnectionEnded("the connection is over")
        id = self._free.pop()
        answer: asyncio.Future[Rsp] = self._loop.create_future()
        self._waiting[id] = answer
        message: Any = request
        self.ring.put(replace(message, id=id).pack())
        self.counters["requests"] += 1
        self.publish()
        return await answer

    async def closed(self) -> str:
        """Answer `call`s for as long as the connection lasts; return why it is over."""
        return await self.serve(self.answer)

    def answer(self) -> bool:
        """Give `call`s the answers that have come: the drain for a frontend with several links."""
        run, count = self.ring.take()
        for start in range(0, count * self._slot_bytes, self._slot_bytes):
            try:
                response = self._response.unpack(run[start : start + self._slot_bytes])
            except ValueError as error:
                raise OtherendError(f"a response that cannot be: {error}") from None
            id = getattr(response, "id", -1)
            answer = self._waiting.pop(id, None)
            if answer is None:
                raise OtherendError(f"a response to request {id}, which was not made")
            self._free.append(id)
            if self._room:
                self._wake_next()
            if not answer.done():
                answer.set_result(response)
        return count > 0

    def _wake_next(self) -> None:
        room = self._room.popleft()
        if not room.done():
            room.set_result(None)

    def close(self) -> None:
        """Close the link; calls that have no answer yet fail with ConnectionEnded."""
        super().close()
        gone: XenbusdError = ConnectionEnded("the connection ended before the answer came")
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(gone)
        self._waiting.clear()
        self._free = [0]  # whoever waits for room finds the link closed
        while self._room:
            self._wake_next()


def describe(links: Sequence[Link[Any]]) -> dict[str, object]:
    """Tell of all links of a device, for `show`."""
    if len(links) == 1:
        return links[0].describe()
    return {f"queue-{number}": link.describe() for number, link in enumerate(links)}
