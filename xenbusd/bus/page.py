"""A shared page that is no ring: mapped or shared, with an event channel, for classes whose protocol is their own.

    async with connect_page(dev) as link:                   # the backend's end
        await link.connected(size=4)
        await link.serve(drain)
    async with offer_page(dev, feature_x=1) as link:        # the frontend's
        await dev.connected()
        await link.serve(drain)

What stands in the page, and whose turn it is, is the driver's matter; so is reading each byte of it once only. `drain`
is a plain function, called at the beginning and at each event.

A backend may go on with the page of a process before it (T15). What the page cannot tell then, whether that process had
begun with the request in it, is kept beside it: see `BackPage.taken`.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from xenbusd.bus.channel import Channel
from xenbusd.bus.device import Device
from xenbusd.bus.handover import identity
from xenbusd.bus.nodes import Value, keys
from xenbusd.bus.state import OFFERED, Seen, State
from xenbusd.errors import ConnectionEnded
from xenbusd.host.interface import Grants
from xenbusd.ring.barrier import fence

if TYPE_CHECKING:
    from xenbusd.bus.backend import BackendDevice
    from xenbusd.bus.frontend import FrontendDevice

_NOTE = struct.Struct("<4sIB")
"""Magic, the page's identity, whether its request was taken: what stands in the file beside a page."""
_MAGIC = b"xbpg"


class PageLink:
    """Common to both ends.

    Args:
        dev: the device that the page belongs to.
        page: the shared page, 4096 bytes.
        channel: where its events arrive.
        grants: for pages besides this one.
        release: gives the page back; called once, after the port is closed.
    """

    def __init__(
        self, dev: Device, page: memoryview, channel: Channel, grants: Grants, release: Callable[[], None]
    ) -> None:
        self.dev = dev
        self.page = page
        self.grants = grants
        self.counters = channel.counters
        """Of this queue: `counters["requests"] += 1`."""
        self.histograms = channel.histograms
        self.notify = channel.notify
        """Wake the other end."""
        self._channel = channel
        self._release = release
        self._drain: Callable[[], bool] | None = None
        self._open = True
        dev.details = self.describe

    @staticmethod
    def fence() -> None:
        """Have the other end see what was stored before this no later than what is stored after it."""
        fence()

    async def serve(self, drain: Callable[[], bool]) -> str:
        """Call `drain` now and after each notification, for as long as the connection lasts.

        Args:
            drain: reads whose turn it is and does what is to be done; returns whether there was something. Not a
                coroutine. An error that it raises ends the connection and is raised here.

        Returns:
            Why it has ended. The page and the port still work, so that work under way can be finished.
        """
        self._drain = drain
        self._channel.attach(self._turn)
        return await self.dev.until_ended()

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
        self.dev.details = None
        self._channel.close()
        self._release()


class BackPage(PageLink):
    """The backend's end.

    Args:
        note: the file beside the page: descriptor, open for writing.
        identity: of the page.
    """

    def __init__(
        self,
        dev: Device,
        page: memoryview,
        channel: Channel,
        grants: Grants,
        release: Callable[[], None],
        note: int,
        identity: int,
    ) -> None:
        super().__init__(dev, page, channel, grants, release)
        self._note = note
        self._identity = identity
        self._taken = False

    @property
    def taken(self) -> bool:
        """Whether the request in the page has been begun with. It outlives this process: if the next one finds True,
        the request may have been carried out, fully, by half, or not at all."""
        return self._taken

    @taken.setter
    def taken(self, taken: bool) -> None:
        """Say it before the first thing is done, and take it back once the answer can be seen."""
        self._taken = taken
        os.pwrite(self._note, _NOTE.pack(_MAGIC, self._identity, taken), 0)

    def recall(self) -> None:
        """Read what the process before us has left.

        Raises:
            ConnectionEnded: it has left nothing, or this is another page.
        """
        raw = os.pread(self._note, _NOTE.size + 1, 0)
        if len(raw) != _NOTE.size or _NOTE.unpack(raw)[:2] != (_MAGIC, self._identity):
            raise ConnectionEnded("the process before us has left no note of this page")
        self._taken = bool(_NOTE.unpack(raw)[2])

    async def connected(self, **published: Value) -> None:
        """Publish keys and switch to Connected: what the page is for can be had. Nothing to do for a page that is gone
        on with; nor if the toolstack closes the device already: it is served until its frontend has closed (T50).

        Args:
            published: keys of our directory that the frontend reads once we are Connected, in the same transaction.

        Raises:
            ConnectionEnded: the device is gone.
        """
        dev = self.dev
        if dev.state is State.CONNECTED:
            return
        try:
            await dev.switch(State.CONNECTED, keys(published))
        except ConnectionEnded:
            seen = await dev.observe()
            if seen.own is State.CLOSING and seen.otherend in OFFERED:
                return
            raise
        await dev.clear_error()
        dev.log.info("device.connected", frontend=dev.otherend.domid, by_otherend=True)

    def close(self) -> None:
        """Close the link; the note stays."""
        if self._open:
            os.close(self._note)
        super().close()


@asynccontextmanager
async def connect_page(dev: BackendDevice) -> AsyncIterator[BackPage]:
    """Map the page that the frontend has offered, and bind its event channel; `connected` is the next step.

    Leaving the context closes the port and unmaps the page; Closing and Closed are written after that. A process that
    ends, or is killed, leaves the device Connected, and the next one goes on with the page.

    Args:
        dev: a backend's device, after `advertise`.

    Raises:
        NodeValueError: the offer is not complete or not sound.
        GrantError, EventChannelError: Xen does not let us have what was offered.
        ConnectionEnded: the process before us left a page that cannot be gone on with.
    Blocks: mapping goes through a thread, for it can sleep in the kernel (T66).
    """
    host, otherend = dev.services.host, dev.otherend
    [(grefs, otherend_port)] = await otherend.read_offers(max_order=0, max_queues=1)
    mapping = await asyncio.to_thread(host.grants.map, otherend.domid, grefs)
    try:
        port = host.events.bind_interdomain(otherend.domid, otherend_port)
        try:
            note = os.open(dev.journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # `dev.close` removes it
        except BaseException:
            host.events.unbind(port)
            raise
    except BaseException:
        mapping.unmap()
        raise
    channel = Channel(dev.services.ports, port, dev.counters.queue(0), dev.fail)
    link = BackPage(dev, mapping.view, channel, host.grants, mapping.unmap, note, identity(grefs, otherend_port))
    try:
        if dev.adopted:
            try:
                link.recall()
            except ConnectionEnded as over:
                dev.log.warning("device.unclean", reason=str(over))
                raise
            dev.log.info("device.adopted", frontend=otherend.domid, by_otherend=True)
        else:
            os.ftruncate(note, 0)
            link.taken = False
        yield link
    finally:
        link.close()


@asynccontextmanager
async def offer_page(dev: FrontendDevice, **requested: Value) -> AsyncIterator[PageLink]:
    """Share a page of zeros, open an event channel, publish both with other keys, and switch to Initialised.

    Entered once the backend is Connected. Call `dev.connected` when the user of this domain can use the device. Leaving
    the context closes the port and takes the page back.

    Args:
        dev: a frontend's device.
        requested: more keys of our directory, in the same transaction.

    Raises:
        GrantError, EventChannelError: no page or port to be had.
        ConnectionEnded: the backend closes instead.
    """
    host, domid = dev.services.host, dev.otherend.domid
    await dev.until(_begins(dev), f"the backend in domain {domid} to begin")
    share = host.grants.share(domid, 1)
    try:
        port = host.events.alloc_unbound(domid)
    except BaseException:
        share.unshare()
        raise
    link = PageLink(
        dev, share.view, Channel(dev.services.ports, port, dev.counters.queue(0), dev.fail), host.grants, share.unshare
    )
    try:
        dev.timeline.record("frontend", "write ring/channel details")
        offered: dict[str, Value] = {"ring-ref": share.grefs[0], "event-channel": port, **keys(requested)}
        await dev.switch(State.INITIALISED, offered)
        await dev.until(_accepted(dev), f"the backend in domain {domid} to connect")
        yield link
    finally:
        link.close()


def _begins(dev: Device) -> Callable[[Seen], bool | None]:
    """Whether what the backend shows is not left from the last time."""

    def step(seen: Seen) -> bool | None:
        dev.check(seen)
        return True if seen.otherend in (State.INITIALISING, State.INIT_WAIT) else None

    return step


def _accepted(dev: Device) -> Callable[[Seen], bool | None]:
    def step(seen: Seen) -> bool | None:
        dev.check(seen)
        return True if seen.otherend is State.CONNECTED else None

    return step
