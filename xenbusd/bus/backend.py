"""The backend's end of a device: the methods that a backend driver calls, in the order of the 2006 paper's event
diagram.

Decision: D63.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress

from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.finding import Finding, not_hotplugged, not_offered
from xenbusd.bus.handle import Handle
from xenbusd.bus.handover import AFTER_CLEAN_STOP, JournalPolicy
from xenbusd.bus.link import AnyBackLink, BackLink, Rings
from xenbusd.bus.mapped_rings import MappedRings
from xenbusd.bus.nodes import Value, keys
from xenbusd.bus.offers import PAGE, AnyFormat, read_offer
from xenbusd.bus.page import BackPage, map_page
from xenbusd.bus.state import OFFERED, Seen, State
from xenbusd.errors import OtherendTimeout
from xenbusd.ring.layout import Req, RingFormat, Rsp

INIT_WAIT_S = 0.5
"""How long InitWait is held before Connected where libxl must see InitWait and runs no script meanwhile."""


class BackendDevice(Handle):
    """A backend driver's handle on its device."""

    _device: BackendLife

    async def advertise(self, *, run_script: bool = True, **features: Value) -> None:
        """Publish the keys that the frontend must know before it makes its ring, switch to InitWait, and see the
        hotplug step through. Return once the hotplug gate is open and the frontend has offered its ring.

        A toolstack runs its script as soon as it sees InitWait: what that script needs exists before this call (T24).

        Args:
            run_script: False returns at InitWait, for a driver that has a step of its own before the hotplug script;
                it then calls `self.run_script`.
            features: keys of our directory; feature_upper=1 is written as `feature-upper`.

        Raises:
            ConnectionEnded: the device closes before it ever connected.
        """
        if self.adopted:
            return
        await self._device.switch(State.INIT_WAIT, keys(features))  # the keys first (T18)
        if run_script:
            await self.run_script()

    async def run_script(self, **variables: str) -> None:
        """Complete `advertise(run_script=False)`: run the hotplug script, if the device has one that we must run and
        that has not run yet, and return once the gate is open and the frontend has offered its ring.

        Args:
            variables: further variables for the script's environment, such as vif="vif5.0". The `remove` script gets
                them, too, if the same daemon runs it.

        Raises:
            ConnectionEnded: the device closes before it ever connected.
        """
        if self.adopted:
            return
        device = self._device
        await self._show_init_wait()
        await device.hotplug.add(variables)  # not before InitWait can be seen (T19)
        await device.until(self._offered)

    async def _show_init_wait(self) -> None:
        """Hold InitWait for libxl, which polls for exactly that state, where no script of libxl's would hold it
        (T19)."""
        device = self._device
        if not device.hotplug.take_init_wait():
            return
        with suppress(OtherendTimeout):
            unseen = Finding("libxl", "may not have seen InitWait")
            await device.until(device.check, unseen, deadline_s=INIT_WAIT_S)

    def _offered(self, seen: Seen) -> bool | Finding:
        device = self._device
        device.check(seen)
        if not device.hotplug.is_done(seen):
            return not_hotplugged(device.hotplug.script, seen.hotplug_status)
        if seen.otherend not in OFFERED:
            return not_offered(self.otherend.domid, seen.otherend)
        return True

    @asynccontextmanager
    async def connect(
        self, format: RingFormat[Req, Rsp], *, journal: JournalPolicy = AFTER_CLEAN_STOP, **published: Value
    ) -> AsyncIterator[BackLink[Req, Rsp]]:
        """Map the frontend's ring, bind its event channel, publish keys, and switch to Connected.

        Leaving the context closes the port and unmaps the ring; Closing and Closed are written after that.

        Args:
            format: the ring's format.
            journal: the driver's promise about its responses, by which the next daemon knows whether to adopt the ring.
            published: keys of our directory that the frontend reads once we are Connected, in the same transaction.

        Raises:
            NodeValueError: the offer is incomplete or invalid.
            GrantError, EventChannelError: Xen refuses the pages or ports that were offered.
            ConnectionEnded: the toolstack closes the device, or the previous daemon's ring cannot be adopted.
        Blocks: mapping runs in a thread, since it can sleep in the kernel (T66).
        """
        async with self.connect_queues(format, max_queues=1, journal=journal, **published) as links:
            yield links[0]

    @asynccontextmanager
    async def connect_queues(
        self,
        format: RingFormat[Req, Rsp],
        *,
        max_queues: int,
        journal: JournalPolicy = AFTER_CLEAN_STOP,
        **published: Value,
    ) -> AsyncIterator[list[BackLink[Req, Rsp]]]:
        """As `connect`, with as many rings as the frontend has offered (T28): `start` each link.

        Args:
            format: the format of each ring.
            max_queues: how many were advertised, as `multi-queue-max-queues`.
            journal: as for `connect`, for each ring by itself.
            published: keys of our directory; written once, when all rings are mapped.

        Raises:
            NodeValueError, GrantError, EventChannelError, ConnectionEnded: as `connect`.
        """
        connecting = self.connect_rings((format,), max_queues=max_queues, beside=(), journal=journal, **published)
        async with connecting as rings:
            yield [links[0] for links in rings.queues]

    @asynccontextmanager
    async def connect_rings(
        self,
        formats: Sequence[AnyFormat],
        *,
        max_queues: int = 1,
        beside: Sequence[AnyFormat] = (),
        journal: JournalPolicy = AFTER_CLEAN_STOP,
        **published: Value,
    ) -> AsyncIterator[Rings[AnyBackLink]]:
        """As `connect`, for a class whose queues have several rings each, with rings beside the queues: `start` each
        link.

        The rings of a queue have a port each or share one, as the frontend has offered.

        Args:
            formats: the formats of the rings of each queue; they name the keys, such as tx-ring-ref.
            max_queues: how many queues were advertised.
            beside: the formats of rings beside the queues, such as a control ring; the frontend may leave these rings
                out.
            journal: as for `connect`, for each ring by itself.
            published: keys of our directory; written once, when all rings are mapped.

        Raises:
            NodeValueError, GrantError, EventChannelError, ConnectionEnded: as `connect`.
        """
        device = self._device
        offer = await read_offer(self.otherend, formats, max_queues, beside)
        with ExitStack() as stack:
            mapped = MappedRings(self, device, journal, stack)
            rings = await mapped.map(offer, formats, beside)
            device.details = rings.describe
            stack.callback(setattr, device, "details", None)
            if self.adopted:
                for link in mapped.links:
                    link.ring.publish()  # responses that the previous daemon had no time to publish
                    link.notify()  # the previous daemon's notification may be lost
                device.now_adopted()
            else:
                await device.now_connected(keys(published))
            yield rings
            if self.stopping:
                mapped.mark_clean()

    @asynccontextmanager
    async def connect_page(self) -> AsyncIterator[BackPage]:
        """Map the page that the frontend has offered, for a class whose shared page is no ring, and bind its event
        channel; `BackPage.connected` is the next step.

        Leaving the context closes the port and unmaps the page; Closing and Closed are written after that. A daemon
        that stops, or is killed, leaves the device Connected, and the next one adopts the page.

        Raises:
            NodeValueError: the offer is incomplete or invalid.
            GrantError, EventChannelError: Xen refuses the pages or ports that were offered.
            ConnectionEnded: the previous daemon left a page that cannot be adopted.
        Blocks: mapping runs in a thread, since it can sleep in the kernel (T66).
        """
        offer = await read_offer(self.otherend, (PAGE,), max_queues=1)
        link = await map_page(self, self._device, offer.queues[0].rings[0])
        try:
            yield link
        finally:
            link.close()
