"""A connected ring: the mapped pages, the event channel, and two ways for a driver to use them.

A fast driver hands `serve` a plain function that drains the ring in a batch. A simple one takes messages one by one:
a backend with `async for request in ring` and `reply`, a frontend with `await ring.call(request)`. Neither way costs
a task for each request, and the fast one costs no future either.

Theory of operation. Everything here runs on the event loop, in the turns that the ring's `Channel` gives it: a turn
drains, polls if the driver has asked for that (see `xenbusd.ring.polling`), and sleeps only if the ring is still empty
after the other end was asked to send events again. The driver may call a link's methods from the event loop, at any
time, also between turns: an answer that is ready later is put and published from wherever it became ready.

A device may have several rings, each a link of its own: `start` each, then wait with `dev.until_ended()` once.

The data path never reads or writes the store; only `async for` observes it, between two batches, to see its end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from xenbusd.bus.channel import Channel
from xenbusd.bus.device import Device
from xenbusd.bus.handle import Handle
from xenbusd.errors import ConnectionEnded, OtherendError, XenbusdError
from xenbusd.host.interface import Grants
from xenbusd.ring.layout import Req, RingFormat, Rsp
from xenbusd.ring.polling import ROUNDS_MAX, BusyPoll
from xenbusd.ring.shared import BackRing, FrontRing

AnyRing = TypeVar("AnyRing", bound=BackRing | FrontRing)


class Link(Generic[AnyRing]):
    """Common to both ends.

    Args:
        dev: the driver's handle on the device.
        device: the device itself.
        ring: our end of the ring.
        channel: the event channel on which its events arrive; perhaps shared with other rings.
        grants: the grant tables, for pages besides the ring's.
        slot_bytes: the ring's stride, to walk through the slots that `ring.take` returns.
        release: gives ring pages back; called once, after the port is closed.
    """

    def __init__(
        self,
        dev: Handle,
        device: Device,
        ring: AnyRing,
        channel: Channel,
        grants: Grants,
        slot_bytes: int,
        release: Callable[[], None],
    ) -> None:
        self.dev = dev
        """The driver's handle on the device."""
        self.ring = ring
        """Our end of the ring: `take`, `put`, ..."""
        self.grants = grants
        """The grant tables, for pages besides the ring's."""
        self.counters = channel.counters
        """The counters of the ring's queue, or the device's own for a ring beside the queues:
        `counters["requests"] += 1`."""
        self.histograms = channel.histograms
        """The histograms, likewise."""
        self.notify = channel.notify
        """Wake the other end."""
        self._channel = channel
        self._device = device
        self._slot_bytes = slot_bytes
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._drain: Callable[[], bool | None] | None = None
        self._open = True

    def publish(self) -> None:
        """Publish the slots that were put into the ring, and wake the other end if it asked for that."""
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
        self._channel.attach(self._turn)

    async def serve(self, drain: Callable[[], bool | None]) -> str:
        """Start, and wait for as long as the connection lasts: for a device of one ring.

        Args:
            drain: as for `start`; an error that it raises is raised here.

        Returns:
            Why it has ended. The ring and the port still work, so that work under way can be finished.
        """
        self.start(drain)
        return await self._device.until_ended()

    def _turn(self) -> bool:
        """Drain, and sleep only if the ring is still empty once the other end sends events again."""
        return self._drain_once() or not self.ring.rest()

    def _drain_once(self) -> bool:
        """Drain. Return whether there may be more."""
        drain = self._drain
        if drain is None:
            return False
        before = self.ring.taken
        more = drain()
        if self.ring.taken != before:
            self._channel.found_work()
        return bool(more)

    def describe(self) -> dict[str, object]:
        """Ring indices and port, for `show`."""
        return {"port": self._channel.port, "ring_slots": self.ring.size, **self.ring.indices()}

    def close(self) -> None:
        """Close the channel, then give the ring's pages back. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._drain = None
        self._channel.close()
        self.ring.release()
        self._release()


class BackLink(Link[BackRing], Generic[Req, Rsp]):
    """The backend's end of a connected ring."""

    def __init__(
        self,
        dev: Handle,
        device: Device,
        ring: BackRing,
        channel: Channel,
        grants: Grants,
        format: RingFormat[Req, Rsp],
        release: Callable[[], None],
    ) -> None:
        super().__init__(dev, device, ring, channel, grants, format.slot_bytes, release)
        self._request = format.request
        self._inbox: deque[Req] = deque()
        self._wake = asyncio.Event()
        self._woken_by_store = False
        self._poll: BusyPoll | None = None

    def start(self, drain: Callable[[], bool | None], *, poll: BusyPoll | None = None) -> None:
        """As `Link.start`.

        Args:
            drain: as for `Link.start`.
            poll: poll the ring for a while before waiting for an event, as long as that pays; None: never. Each ring
                has one of its own.
        """
        self._poll = poll
        super().start(drain)

    async def serve(self, drain: Callable[[], bool | None], *, poll: BusyPoll | None = None) -> str:
        """As `Link.serve`, with `poll` as for `start`."""
        self.start(drain, poll=poll)
        return await self._device.until_ended()

    def _turn(self) -> bool:
        """Drain, poll for more as long as that pays, and sleep only if the ring is still empty after that."""
        if self._drain_once():
            return True
        poll, channel, ring = self._poll, self._channel, self.ring
        if (
            poll is not None
            and channel.is_only_active
            and not ring.unanswered
            and not channel.is_shared
            and poll.is_worth_it()
        ):
            if channel.masked:
                channel.unmask()  # now, since the next request need not wait for it
            for _ in range(ROUNDS_MAX):
                if not ring.poll():
                    poll.miss()
                    break
                poll.found()
                if self._drain_once():
                    return True
            else:
                return True
        return not ring.rest()

    def reply(self, response: Rsp) -> None:
        """Answer a request; the frontend sees the answer once the driver waits for the next request."""
        self.ring.put(response.pack())

    async def __aiter__(self) -> AsyncIterator[Req]:
        """Yield the requests in order, and end when the connection has ended."""
        self._channel.listen(self._wake.set)
        self._device.on_wake.add(self._store_changed)
        self._woken_by_store = True
        while True:
            self._wake.clear()
            if self._woken_by_store and await self._has_ended():
                return
            if self._fill():
                self._channel.found_work()
                while self._inbox:
                    yield self._inbox.popleft()
                self.publish()
                await asyncio.sleep(0)  # let other devices have their turn
            elif self.ring.rest():
                self._channel.unmask()
                await self._wake.wait()

    def _store_changed(self) -> None:
        self._woken_by_store = True
        self._wake.set()

    def _fill(self) -> bool:
        run, count = self.ring.take()
        self.counters["requests"] += count
        for start in range(0, count * self._slot_bytes, self._slot_bytes):
            try:
                self._inbox.append(self._request.unpack(run[start : start + self._slot_bytes]))
            except ValueError as error:
                raise OtherendError(f"an impossible request: {error}") from None
        return count > 0

    async def _has_ended(self) -> bool:
        device = self._device
        self._woken_by_store = False
        device.forget_hints()
        seen = await device.observe()
        try:
            await device.follow(seen)
        except ConnectionEnded:
            self.publish()
            return True
        return False

    def close(self) -> None:
        """Close the link."""
        self._device.on_wake.discard(self._store_changed)
        super().close()


class FrontLink(Link[FrontRing], Generic[Req, Rsp]):
    """The frontend's end of a connected ring."""

    def __init__(
        self,
        dev: Handle,
        device: Device,
        ring: FrontRing,
        channel: Channel,
        grants: Grants,
        format: RingFormat[Req, Rsp],
        release: Callable[[], None],
    ) -> None:
        super().__init__(dev, device, ring, channel, grants, format.slot_bytes, release)
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
            raise ConnectionEnded("the connection has ended")
        id = self._free.pop()
        answer: asyncio.Future[Rsp] = self._loop.create_future()
        self._waiting[id] = answer
        message: Any = request
        self.ring.put(replace(message, id=id).pack())
        self.counters["requests"] += 1
        self.publish()
        return await answer

    async def closed(self) -> str:
        """Resolve `call`s for as long as the connection lasts; return why it has ended."""
        return await self.serve(self.answer)

    def answer(self) -> bool:
        """Resolve `call`s whose answers have come: the drain of a frontend that starts several links."""
        run, count = self.ring.take()
        for start in range(0, count * self._slot_bytes, self._slot_bytes):
            try:
                response = self._response.unpack(run[start : start + self._slot_bytes])
            except ValueError as error:
                raise OtherendError(f"an impossible response: {error}") from None
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
        self._free = [0]  # a call that waits for room finds the link closed
        while self._room:
            self._wake_next()


AnyBackLink = BackLink[Any, Any]
AnyFrontLink = FrontLink[Any, Any]
AnyLink = TypeVar("AnyLink", bound=Link[Any])


@dataclass(frozen=True)
class Rings(Generic[AnyLink]):
    """The rings of one connection.

    `queues` holds the links of each queue, in the order of the driver's formats; `beside` those of rings beside the
    queues, None for one that the frontend has not offered.
    """

    queues: Sequence[tuple[AnyLink, ...]]
    beside: Sequence[AnyLink | None]
    names: Sequence[str]
    beside_names: Sequence[str]

    def describe(self) -> dict[str, object]:
        """Ring indices and ports, for `show`."""
        shown = [self._describe_queue(links) for links in self.queues]
        top = shown[0] if len(shown) == 1 else {f"queue-{number}": queue for number, queue in enumerate(shown)}
        extra = zip(self.beside_names, self.beside, strict=True)
        return {**top, **{name: link.describe() for name, link in extra if link is not None}}

    def _describe_queue(self, links: tuple[AnyLink, ...]) -> dict[str, object]:
        if len(links) == 1:
            return links[0].describe()
        return {name: link.describe() for name, link in zip(self.names, links, strict=True)}
