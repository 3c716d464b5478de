"""The frontend's end of a device: what a frontend driver calls, in the order of the 2006 paper's event diagram."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial

from xenbusd.bus.channel import Channel
from xenbusd.bus.device import Device
from xenbusd.bus.link import FrontLink, describe
from xenbusd.bus.nodes import Value, keys
from xenbusd.bus.state import Seen, Side, State, frontend_end_reason, parse_state
from xenbusd.errors import ConnectionEnded, OtherendTimeout
from xenbusd.ring.layout import Req, RingFormat, Rsp
from xenbusd.ring.shared import FrontRing

CLOSE_S = 5.0
"""How long a backend may take for each step of a close; Linux' frontends wait as long (xenbus_reset_state)."""

BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before trying again with a backend that keeps closing on us."""

_RING_KEYS = ("multi-queue-num-queues", "ring-page-order")
"""Keys of an offer whose absence means something: one left by an earlier offer would belie this one."""

_BACKEND_BEGINS = (State.INITIALISING, State.INIT_WAIT)
_BACKEND_PRESENT = (State.INIT_WAIT, State.INITIALISED, State.CONNECTED)


class FrontendDevice(Device):
    """A device whose frontend we are."""

    side = Side.FRONTEND
    _attempts = 0

    async def observe(self) -> Seen:
        """Read our `state`, and the backend's `state` and `online`."""
        own, online, otherend = await self.read_all(
            self.path + "/state", self.otherend.path + "/online", self.otherend.state_path
        )
        return self.note(Seen(parse_state(own), parse_state(otherend), online == b"1", None))

    def end_reason(self, seen: Seen) -> str | None:
        """Why the connection is over, or None."""
        return frontend_end_reason(seen, self.state)

    async def until_ended(self) -> str:
        """Wait for as long as the connection lasts. A backend that leads into Closing sees us follow; what is under
        way can still be finished after that, for it serves the ring until we have Closed (T50)."""
        reason = await super().until_ended()
        if self.seen.own is State.CONNECTED and self.seen.otherend is State.CLOSING:
            with suppress(ConnectionEnded):
                await self.switch(State.CLOSING)
        return reason

    # -- what a driver calls, in order -----------------------------------------------------------------------------

    async def backend_ready(self) -> None:
        """Wait for the backend's InitWait: what it advertises can be read now. A class whose frontend needs nothing
        from its backend first (vtpm, T49) does not call this.

        Raises:
            ConnectionEnded: the device goes away meanwhile.
        """

        def step(seen: Seen) -> bool | None:
            self.check(seen)
            return True if seen.otherend is State.INIT_WAIT else None

        await self.until(step, f"the backend in domain {self.otherend.domid} to advertise (InitWait)")

    @asynccontextmanager
    async def offer(
        self, format: RingFormat[Req, Rsp], *, order: int | None = None, **requested: Value
    ) -> AsyncIterator[FrontLink[Req, Rsp]]:
        """Share a fresh ring, open an event channel, publish both with other keys, and switch to Initialised.

        Entered once the backend is Connected: what it published can be read then. Call `connected` when the user of
        this domain can use the device. Leaving the context closes the port and takes the ring back.

        Args:
            format: what the ring carries.
            order: log2 of the ring's pages; None is one page in the old spelling, `ring-ref` (T28).
            requested: more keys of our directory, in the same transaction.

        Raises:
            GrantError, EventChannelError: no pages or ports to be had.
            ConnectionEnded: the backend closes instead.
        """
        async with self.offer_queues(format, queues=1, order=order, **requested) as links:
            yield links[0]

    @asynccontextmanager
    async def offer_queues(
        self, format: RingFormat[Req, Rsp], *, queues: int, order: int | None = None, **requested: Value
    ) -> AsyncIterator[list[FrontLink[Req, Rsp]]]:
        """As `offer`, with several rings, each with an event channel of its own (T28): `start` each link.

        Args:
            format: what each ring carries.
            queues: how many; no more than the backend's `multi-queue-max-queues`.
            order: of each ring.
            requested: more keys of our directory, in the same transaction.

        Raises:
            GrantError, EventChannelError: no pages or ports to be had for all of them.
            ConnectionEnded: the backend closes instead.
        """
        domid = self.otherend.domid
        if self.seen.otherend not in _BACKEND_BEGINS:  # what it shows is left from the last time
            await self.until(self._begins, f"the backend in domain {domid} to begin again")
        offered: dict[str, Value] = {**keys(requested)}
        if queues > 1:
            offered["multi-queue-num-queues"] = queues
        if order is not None:
            offered["ring-page-order"] = order
        links: list[FrontLink[Req, Rsp]] = []
        with ExitStack() as stack:
            for number in range(queues):
                link, found = self._open_queue(format, number, order)
                stack.callback(link.close)
                links.append(link)
                offered.update({f"queue-{number}/{key}" if queues > 1 else key: found[key] for key in found})
            self.details = partial(describe, links)
            self.timeline.record("frontend", "write ring/channel details")
            await self.switch(State.INITIALISED, offered, remove=[key for key in _RING_KEYS if key not in offered])
            await self.until(self._accepted, f"the backend in domain {domid} to connect")
            yield links

    def _open_queue(
        self, format: RingFormat[Req, Rsp], number: int, order: int | None
    ) -> tuple[FrontLink[Req, Rsp], dict[str, Value]]:
        """Make one ring and its port, and the keys that tell of them."""
        host, domid = self.services.host, self.otherend.domid
        share = host.grants.share(domid, 1 << (order or 0))
        try:
            port = host.events.alloc_unbound(domid)
        except BaseException:
            share.unshare()
            raise
        ring = FrontRing(share.view, format.slot_bytes)
        found: dict[str, Value] = {"event-channel": port}
        names = ["ring-ref"] if order is None else [f"ring-ref{page}" for page in range(1 << order)]
        found.update(zip(names, share.grefs, strict=True))
        channel = Channel(self.services.ports, port, self.counters.queue(number), self.fail)
        return FrontLink(self, ring, channel, host.grants, format, share.unshare), found

    def _begins(self, seen: Seen) -> bool | None:
        self.check(seen)
        return True if seen.otherend in _BACKEND_BEGINS else None

    def _accepted(self, seen: Seen) -> bool | None:
        self.check(seen)
        return True if seen.otherend is State.CONNECTED else None

    async def connected(self) -> None:
        """Switch to Connected: the device can be used.

        Raises:
            ConnectionEnded: it closes instead.
        """
        await self.switch(State.CONNECTED)
        await self.clear_error()
        self._attempts = 0
        self.log.info("device.connected", backend=self.otherend.domid, by_otherend=True)

    # -- what the supervisor calls ---------------------------------------------------------------------------------

    async def appear(self) -> bool:
        """Begin at Initialising: if a process before us died with a ring, its pages are gone, so close first,
        letting the backend see each step, as a kexec'd kernel does (T51).

        Returns:
            True: begin now.

        Raises:
            ConnectionEnded: nothing to do here.
        """
        seen = await self.begin()
        if seen.own is not State.INITIALISING:
            await self.close()
            await self.switch(State.INITIALISING)
        return True

    async def close(self) -> None:
        """Go to Closed, through Closing unless the backend has Closed already. Our ring is gone now."""
        seen = await self.observe()
        if self.is_not_ours(seen) or seen.own is State.CLOSED:
            return
        if seen.own is not State.CLOSING and seen.otherend in _BACKEND_PRESENT:
            await self.switch(State.CLOSING)
            await self._wait_for_backend(State.CLOSING)
        if not self.is_not_ours(self.seen):
            await self.switch(State.CLOSED)
            if self.seen.otherend in (*_BACKEND_PRESENT, State.CLOSING):
                await self._wait_for_backend(State.CLOSED)

    async def wait_again(self, failed: bool) -> bool:
        """Wait at Closed: True, and back at Initialising, if the backend's side is still wanted; False if it is over.

        Args:
            failed: the last connection ended by an error of the backend's.
        """
        seen = await self.observe()
        if not self.stopping and not self.is_not_ours(seen) and seen.online:
            pause = BACK_OFF_S[min(self._attempts + failed, len(BACK_OFF_S) - 1)]
            self._attempts += 1
            try:
                await self.until(self._no_more, "a moment, before trying again", deadline_s=pause)
            except OtherendTimeout:
                await self.switch(State.INITIALISING)
                return True
        await self.until(self._gone_or_back, "the toolstack to remove the directory")
        if self.stopping or self.is_not_ours(self.seen):
            return False
        await self.switch(State.INITIALISING)
        return True

    def _no_more(self, seen: Seen) -> bool | None:
        return True if self.stopping or self.is_not_ours(seen) or not seen.online else None

    def _gone_or_back(self, seen: Seen) -> bool | None:
        return True if self.stopping or self.is_not_ours(seen) or seen.online else None

    async def _wait_for_backend(self, state: State) -> None:
        """Give the backend time to show `state`, or what comes after it."""

        def step(seen: Seen) -> bool | None:
            arrived = seen.otherend in (state, State.CLOSED, State.UNKNOWN) or self.is_not_ours(seen)
            return True if arrived or (not seen.online and seen.otherend is State.INITIALISING) else None

        try:
            await self.until(step, f"the backend to show {state.title}", deadline_s=CLOSE_S)
        except OtherendTimeout as late:
            self.log.warning("otherend.late", reason=str(late))
