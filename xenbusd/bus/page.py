"""A shared page that is no ring: mapped or shared, with an event channel, for classes whose protocol is their own.

    async with dev.connect_page() as link:                  # the backend's end
        await link.connected(size=4)
        await link.serve(drain)
    async with dev.offer_page(feature_x=1) as link:         # the frontend's
        await dev.connected()
        await link.serve(drain)

The driver defines the page's contents and whose turn it is, and must read each byte of the page only once. `drain`
is a plain function, called at the beginning, for a frontend may write a request before the backend is Connected (T49),
and at each event.

A backend may adopt the page of the previous daemon (T15). The page does not show whether that daemon had taken the
request in it; a note beside the page does: see `BackPage.taken`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.channel import Channel
from xenbusd.bus.device import Device
from xenbusd.bus.frontend_life import FrontendLife
from xenbusd.bus.handle import Handle
from xenbusd.bus.handover import PageNote, identity, journal_path
from xenbusd.bus.nodes import Value, keys
from xenbusd.bus.offers import RingOffer
from xenbusd.bus.state import OFFERED, State
from xenbusd.errors import ConnectionEnded
from xenbusd.host.interface import Grants
from xenbusd.ring.barrier import fence


class PageLink:
    """Common to both ends.

    Args:
        dev: the driver's handle on the device.
        device: the device itself.
        page: the shared page, 4096 bytes.
        channel: the event channel on which its events arrive.
        grants: the grant tables, for pages besides this one.
        release: gives the page back; called once, after the port is closed.
    """

    def __init__(
        self,
        dev: Handle,
        device: Device,
        page: memoryview,
        channel: Channel,
        grants: Grants,
        release: Callable[[], None],
    ) -> None:
        self.dev = dev
        """The driver's handle on the device."""
        self.page = page
        """The shared page, 4096 bytes."""
        self.grants = grants
        """The grant tables, for pages besides this one."""
        self.counters = channel.counters
        """This queue's counters: `counters["requests"] += 1`."""
        self.histograms = channel.histograms
        """This queue's histograms."""
        self.notify = channel.notify
        """Wake the other end."""
        self._channel = channel
        self._device = device
        self._release = release
        self._drain: Callable[[], bool] | None = None
        self._open = True
        device.details = self.describe

    @staticmethod
    def fence() -> None:
        """Order our stores: the other end sees those before the fence no later than those after it."""
        fence()

    async def serve(self, drain: Callable[[], bool]) -> str:
        """Call `drain` now and after each notification, for as long as the connection lasts.

        Args:
            drain: reads whose turn it is and does the work; returns whether there was any. Not a
                coroutine. An error that it raises ends the connection and is raised here.

        Returns:
            Why it has ended. The page and the port still work, so that work under way can be finished.
        """
        self._drain = drain
        self._channel.attach(self._turn)
        return await self._device.until_ended()

    def _turn(self) -> bool:
        if self._drain is not None and self._drain():
            self._channel.found_work()
        return False

    def describe(self) -> dict[str, object]:
        """The port and the page's first bytes, for `show`."""
        return {"port": self._channel.port, "page": bytes(self.page[:8]).hex(" ")}

    def close(self) -> None:
        """Close the channel, then give the page back. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._drain = None
        self._device.details = None
        self._channel.close()
        self._release()


class BackPage(PageLink):
    """The backend's end.

    Args:
        note: the note beside the page, which outlives this daemon: closing the link closes the note and keeps its file.
    """

    def __init__(
        self,
        dev: Handle,
        device: Device,
        page: memoryview,
        channel: Channel,
        grants: Grants,
        release: Callable[[], None],
        note: PageNote,
    ) -> None:
        super().__init__(dev, device, page, channel, grants, release)
        self._note = note

    @property
    def taken(self) -> bool:
        """Whether the request in the page was taken. This outlives the daemon: if the next one finds True, the request
        may have been carried out, in full, in part, or not at all."""
        return self._note.taken

    @taken.setter
    def taken(self, taken: bool) -> None:
        """Set the note before the first step of a request, and clear it once the response can be seen."""
        self._note.taken = taken

    async def connected(self, **published: Value) -> None:
        """Publish keys and switch to Connected: the page can be used. Does nothing for an adopted page, nor if the
        toolstack is already closing the device, which is then served until its frontend has closed (T50).

        Args:
            published: keys of our directory that the frontend reads once we are Connected, in the same transaction.

        Raises:
            ConnectionEnded: the device is gone.
        """
        device = self._device
        if device.state is State.CONNECTED:
            return
        try:
            await device.now_connected(keys(published))
        except ConnectionEnded:
            seen = await device.observe()
            if seen.own is State.CLOSING and seen.otherend in OFFERED:
                return
            raise

    def close(self) -> None:
        """Close the link; the note's file stays."""
        self._note.close()
        super().close()


async def map_page(dev: Handle, device: BackendLife, offer: RingOffer) -> BackPage:
    """Map a frontend's page, bind its event channel, and begin its note or adopt it. For `BackendDevice.connect_page`.

    Raises:
        GrantError, EventChannelError: Xen refuses the pages or ports that were offered.
        ConnectionEnded: the previous daemon left a page that cannot be adopted.
    Blocks: mapping runs in a thread, since it can sleep in the kernel (T66).
    """
    services, domid = device.services, device.otherend.domid
    host = services.host
    mapping = await asyncio.to_thread(host.grants.map, domid, offer.grefs)
    with ExitStack() as undo:
        undo.callback(mapping.unmap)
        port = host.events.bind_interdomain(domid, offer.port)
        undo.callback(host.events.unbind, port)
        note = PageNote(journal_path(services.run_dir, device.id.log_name), identity(offer.grefs, offer.port))
        undo.callback(note.close)
        if device.connection.adopted:
            with device.adopting():
                note.adopt()
            device.now_adopted()
        else:
            note.begin()
        undo.pop_all()
    channel = Channel(services.ports, port, device.counters.queue(0), device.fail)
    return BackPage(dev, device, mapping.view, channel, host.grants, mapping.unmap, note)


def share_page(dev: Handle, device: FrontendLife) -> tuple[PageLink, RingOffer]:
    """Share a page of zeros and open an event channel. For `FrontendDevice.offer_page`.

    Raises:
        GrantError, EventChannelError: the page or the port cannot be allocated.
    """
    services, domid = device.services, device.otherend.domid
    host = services.host
    share = host.grants.share(domid, 1)
    try:
        port = host.events.alloc_unbound(domid)
    except BaseException:
        share.unshare()
        raise
    channel = Channel(services.ports, port, device.counters.queue(0), device.fail)
    return PageLink(dev, device, share.view, channel, host.grants, share.unshare), RingOffer(share.grefs, port)
