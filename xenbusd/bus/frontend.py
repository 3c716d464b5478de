"""The frontend's end of a device: the methods that a frontend driver calls, in the order of the 2006 paper's event
diagram.

Decision: D75.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager

from xenbusd.bus.finding import Finding, end, not_at
from xenbusd.bus.frontend_life import FrontendLife
from xenbusd.bus.handle import Handle
from xenbusd.bus.link import AnyFrontLink, FrontLink, Rings
from xenbusd.bus.nodes import Value, keys
from xenbusd.bus.offers import PAGE, AnyFormat, keys_to_remove, offer_keys, one_ring
from xenbusd.bus.page import PageLink, share_page
from xenbusd.bus.shared_rings import SharedRings
from xenbusd.bus.state import Seen, Side, State
from xenbusd.ring.layout import Req, RingFormat, Rsp

_BACKEND_BEGINS = (State.INITIALISING, State.INIT_WAIT)


class FrontendDevice(Handle):
    """A frontend driver's handle on its device."""

    _device: FrontendLife

    async def backend_ready(self) -> None:
        """Wait for the backend's InitWait; the keys that it advertises can be read then. A class whose frontend needs
        nothing from its backend first (vtpm, T49) does not call this.

        Raises:
            ConnectionEnded: the device goes away meanwhile.
        """
        await self._until_backend_is((State.INIT_WAIT,), not_at(Side.BACKEND, self.otherend.domid, State.INIT_WAIT))

    @asynccontextmanager
    async def offer(
        self, format: RingFormat[Req, Rsp], *, order: int | None = None, **requested: Value
    ) -> AsyncIterator[FrontLink[Req, Rsp]]:
        """Share a fresh ring, open an event channel, publish both with other keys, and switch to Initialised.

        The block is entered once the backend is Connected, and the keys that it published can be read then. Call
        `connected` when the user of this domain can use the device. Leaving the context closes the port and takes the
        ring back.

        Args:
            format: the ring's format.
            order: log2 of the ring's pages; None is one page in the old spelling, `ring-ref` (T28).
            requested: more keys of our directory, in the same transaction.

        Raises:
            GrantError, EventChannelError: pages or ports cannot be allocated.
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
            format: the format of each ring.
            queues: how many; no more than the backend's `multi-queue-max-queues`.
            order: log2 of the pages of each ring.
            requested: more keys of our directory, in the same transaction.

        Raises:
            GrantError, EventChannelError: pages or ports cannot be allocated for all of them.
            ConnectionEnded: the backend closes instead.
        """
        offering = self.offer_rings(
            (format,), queues=queues, order=order, split_ports=False, beside=(), left_out=(), **requested
        )
        async with offering as rings:
            yield [links[0] for links in rings.queues]

    @asynccontextmanager
    async def offer_rings(
        self,
        formats: Sequence[AnyFormat],
        *,
        queues: int = 1,
        order: int | None = None,
        split_ports: bool = False,
        beside: Sequence[AnyFormat] = (),
        left_out: Collection[AnyFormat] = (),
        **requested: Value,
    ) -> AsyncIterator[Rings[AnyFrontLink]]:
        """As `offer`, for a class whose queues have several rings each, with rings beside the queues: `start` each
        link.

        Args:
            formats: the formats of the rings of each queue; they name the keys, such as tx-ring-ref.
            queues: how many; no more than the backend's `multi-queue-max-queues`.
            order: log2 of the pages of each ring of a queue.
            split_ports: each ring of a queue has a port of its own, in the key that its format names; otherwise they
                share one, in `event-channel`. Only if the backend has advertised that it can.
            beside: the formats of all rings beside the queues that the class knows, such as a control ring.
            left_out: those of `beside` that are not offered, because the backend has not advertised them.
            requested: more keys of our directory, in the same transaction.

        Raises:
            GrantError, EventChannelError: pages or ports cannot be allocated for all of them.
            ConnectionEnded: the backend closes instead.
        """
        device = self._device
        if self.seen.otherend not in _BACKEND_BEGINS:  # its state is left over from the last connection
            await self._until_backend_is(_BACKEND_BEGINS, self._backend("has not begun again"))
        with ExitStack() as stack:
            shared = SharedRings(self, device, stack)
            rings, offer = shared.share(formats, queues, order or 0, beside, left_out, split_ports=split_ports)
            device.details = rings.describe
            stack.callback(setattr, device, "details", None)
            offered = {**keys(requested), **offer_keys(formats, order, beside, offer)}
            await self._publish(offered, keys_to_remove(formats, beside, offer, offered))
            yield rings

    @asynccontextmanager
    async def offer_page(self, **requested: Value) -> AsyncIterator[PageLink]:
        """Share a page of zeros, for a class whose shared page is no ring, open an event channel, publish both with
        other keys, and switch to Initialised.

        The block is entered once the backend is Connected. Call `connected` when the user of this domain can use the
        device. Leaving the context closes the port and takes the page back.

        Args:
            requested: more keys of our directory, in the same transaction.

        Raises:
            GrantError, EventChannelError: the page or the port cannot be allocated.
            ConnectionEnded: the backend closes instead.
        """
        await self._until_backend_is(_BACKEND_BEGINS, self._backend("has not begun"))
        link, offer = share_page(self, self._device)
        try:
            await self._publish(
                {**offer_keys((PAGE,), None, (), one_ring(offer.grefs, offer.port)), **keys(requested)}, ()
            )
            yield link
        finally:
            link.close()

    async def _publish(self, offered: dict[str, Value], remove: Sequence[str]) -> None:
        """Write the offer, switch to Initialised, and wait for the backend to accept it."""
        self._device.timeline.record("frontend", "write ring/channel details")
        await self._device.switch(State.INITIALISED, offered, remove=remove)
        await self._until_backend_is((State.CONNECTED,), not_at(Side.BACKEND, self.otherend.domid, State.CONNECTED))

    def _backend(self, what: str) -> Finding:
        return Finding(end(Side.BACKEND, self.otherend.domid), what)

    async def _until_backend_is(self, states: Sequence[State], waiting_for: Finding) -> None:
        """Wait until the backend is at one of `states`.

        Raises:
            ConnectionEnded: the connection ends instead.
        """

        def step(seen: Seen) -> bool | None:
            self.check(seen)
            return True if seen.otherend in states else None

        await self.until(step, waiting_for)

    async def connected(self) -> None:
        """Switch to Connected: the device can be used.

        Raises:
            ConnectionEnded: the device closes instead.
        """
        await self._device.now_connected()
        self._device.attempts = 0
