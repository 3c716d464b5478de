"""The backend's end of a device: what a backend driver calls, in the order of the 2006 paper's event diagram."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial

from xenbusd.bus.channel import Channel
from xenbusd.bus.counters import Measure
from xenbusd.bus.device import Device, Services
from xenbusd.bus.handover import Handover, forget, identity, journal_path
from xenbusd.bus.link import BackLink, describe
from xenbusd.bus.nodes import Value, keys
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import ACTIVE, OFFERED, Seen, Side, State, backend_end_reason, parse_state
from xenbusd.errors import ConnectionEnded, HotplugError, NodeNotFound, OtherendTimeout, StoreError
from xenbusd.ids import DOM0, Gref, Port
from xenbusd.ring.journal import Journal
from xenbusd.ring.layout import Req, RingFormat, Rsp
from xenbusd.ring.shared import BackRing
from xenbusd.store.prune import prune
from xenbusd.store.transaction import Transaction

INIT_WAIT_S = 0.5
"""How long InitWait stands before Connected where libxl must see it and runs no script meanwhile."""

CLOSE_S = 10.0
"""How long a frontend may take to close after an error of ours, before we close without it."""


class BackendDevice(Device):
    """A device whose backend we are."""

    side = Side.BACKEND
    hotplug_ran = False
    """Whether a `remove` is owed."""
    _script: str | None = None
    _script_is_ours = False
    _moved = False
    """The frontend was seen to leave Initialising since we began: Initialising seen after that is a new beginning."""
    _unseen = False
    """libxl made the device, and nothing but time can tell that it has seen its InitWait."""

    def __init__(
        self, services: Services, id: DeviceId, otherend_path: str | None = None, measures: Iterable[Measure] = ()
    ) -> None:
        super().__init__(services, id, otherend_path, measures)
        self.journal_path = f"{services.run_dir}/{id.log_name}.ring"
        """Of the first ring; `handover.journal_path` tells those of the others. Removed by `close`."""

    async def observe(self) -> Seen:
        """Read our `state`, `online` and `hotplug-status`, and the frontend's `state`."""
        own, online, status, otherend = await self.read_all(
            self.path + "/state", self.path + "/online", self.path + "/hotplug-status", self.otherend.state_path
        )
        seen = Seen(
            own=parse_state(own),
            otherend=State.UNKNOWN if self.otherend_dead else parse_state(otherend),
            online=online == b"1",  # absent means 0 (T54)
            hotplug_status=None if status is None else status.decode("ascii", "replace"),
        )
        self._moved = self._moved or seen.otherend is not State.INITIALISING
        return self.note(seen)

    def end_reason(self, seen: Seen) -> str | None:
        """Why the connection is over, or None."""
        return backend_end_reason(seen, self.state)

    # -- what a driver calls, in order -----------------------------------------------------------------------------

    async def advertise(self, **features: Value) -> None:
        """Publish what the frontend must know before it makes its ring, switch to InitWait, and see the hotplug step
        through. Return once the hotplug gate is open and the frontend has offered its ring.

        Args:
            features: keys of our directory; feature_upper=1 is written as `feature-upper`.

        Raises:
            ConnectionEnded: the device closes before it ever connected.
        """
        if self.adopted:
            return
        await self.switch(State.INIT_WAIT, keys(features))  # the keys first (T18)
        await self._show_init_wait()
        await self._run_hotplug()  # not before InitWait is there to be seen (T19)
        await self.until(self._offered, "")

    async def _show_init_wait(self) -> None:
        """Hold InitWait for libxl, which waits to read exactly that, where no script of its would hold it (T19)."""
        if not self._unseen:
            return
        self._unseen = False
        with suppress(OtherendTimeout):
            await self.until(self.check, "libxl to see InitWait", deadline_s=INIT_WAIT_S)

    def _offered(self, seen: Seen) -> bool | None:
        self.check(seen)
        if not (seen.gate_open or (self._script is None and seen.hotplug_status is None)):
            self.waiting_for = f"the hotplug script to report (hotplug-status is {seen.hotplug_status or 'not there'})"
            return None
        if seen.otherend not in OFFERED:
            self.waiting_for = (
                f"the frontend in domain {self.otherend.domid} to offer its ring (its state is {seen.otherend.title})"
            )
            return None
        return True

    @asynccontextmanager
    async def connect(
        self, format: RingFormat[Req, Rsp], *, in_order: bool = False, **published: Value
    ) -> AsyncIterator[BackLink[Req, Rsp]]:
        """Map the frontend's ring, bind its event channel, publish keys, and switch to Connected.

        Leaving the context closes the port and unmaps the ring; Closing and Closed are written after that.

        Args:
            format: what the ring carries.
            in_order: the driver answers requests in the order in which it took them, and any of them may be carried out
                twice. Then another process can go on with the ring after this one was killed.
            published: keys of our directory that the frontend reads once we are Connected, in the same transaction.

        Raises:
            NodeValueError: the offer is not complete or not sound.
            GrantError, EventChannelError: Xen does not let us have what was offered.
            ConnectionEnded: the toolstack closes the device.
        Blocks: mapping goes through a thread, for it can sleep in the kernel (T66).
        """
        async with self.connect_queues(format, max_queues=1, in_order=in_order, **published) as links:
            yield links[0]

    @asynccontextmanager
    async def connect_queues(
        self, format: RingFormat[Req, Rsp], *, max_queues: int, in_order: bool = False, **published: Value
    ) -> AsyncIterator[list[BackLink[Req, Rsp]]]:
        """As `connect`, with as many rings as the frontend has offered (T28): `start` each link.

        Args:
            format: what each ring carries.
            max_queues: how many were offered, as `multi-queue-max-queues`.
            in_order: as for `connect`, for each ring by itself.
            published: keys of our directory; written once, when all rings are mapped.

        Raises:
            NodeValueError, GrantError, EventChannelError, ConnectionEnded: as `connect`.
        Blocks: mapping goes through a thread, for it can sleep in the kernel (T66).
        """
        offers = await self.otherend.read_offers(format.max_order, max_queues)
        links: list[BackLink[Req, Rsp]] = []
        handovers: list[Handover] = []
        with ExitStack() as stack:
            for number, (grefs, otherend_port) in enumerate(offers):
                handover = Handover(journal_path(self.journal_path, number))
                stack.callback(handover.close)
                link = await self._open_queue(format, number, grefs, otherend_port, handover, in_order)
                stack.callback(link.close)
                handovers.append(handover)
                links.append(link)
            self.details = partial(describe, links)
            if self.adopted:
                for link in links:
                    link.ring.publish()  # what the process before us had no time to show
                    link.notify()  # the frontend may have slept through it all
                self.log.info("device.adopted", frontend=self.otherend.domid, by_otherend=True)
            else:
                await self.switch(State.CONNECTED, keys(published))
                await self.clear_error()
                self.log.info("device.connected", frontend=self.otherend.domid, by_otherend=True)
            yield links
            if self.stopping:
                for link, handover in zip(links, handovers, strict=True):
                    if not link.ring.unanswered:
                        handover.mark_clean()

    async def _open_queue(
        self,
        format: RingFormat[Req, Rsp],
        number: int,
        grefs: Sequence[Gref],
        otherend_port: Port,
        handover: Handover,
        in_order: bool,
    ) -> BackLink[Req, Rsp]:
        """Map one ring, bind its port, and begin its journal, or go on with it; nothing is shown to anybody yet."""
        host, domid = self.services.host, self.otherend.domid
        mapping = await asyncio.to_thread(host.grants.map, domid, grefs)
        try:
            port = host.events.bind_interdomain(domid, otherend_port)
        except BaseException:
            mapping.unmap()
            raise
        try:
            ring_id, pages = identity(grefs, otherend_port), len(grefs)
            if self.adopted:
                journal = self._adopt(handover, ring_id, pages, format.slot_bytes)
            else:
                journal = handover.begin(ring_id, pages, format.slot_bytes, in_order=in_order)
            ring = BackRing(mapping.view, format.slot_bytes, attach=self.adopted, journal=journal)
        except BaseException:
            host.events.unbind(port)
            mapping.unmap()
            raise
        channel = Channel(self.services.ports, port, self.counters.queue(number), self.fail)
        return BackLink(self, ring, channel, host.grants, format, mapping.unmap)

    def _adopt(self, handover: Handover, ring_id: int, pages: int, slot_bytes: int) -> Journal:
        """Take the journal of the process before us, or say in the log why the device must close instead."""
        try:
            return handover.adopt(ring_id, pages, slot_bytes)
        except ConnectionEnded as over:
            self.log.warning("device.unclean", reason=str(over))
            raise

    # -- what the supervisor calls ---------------------------------------------------------------------------------

    async def appear(self) -> bool:
        """Find out what we are: new, or left behind by a backend process before us (T15).

        Returns:
            Whether to begin now; otherwise `wait_again` says when.

        Raises:
            ConnectionEnded: nothing to do here.
        """
        seen = await self.begin()
        await self._read_script()
        if seen.own is State.INITIALISING and seen.otherend is not State.UNKNOWN:
            return True
        self.hotplug_ran = self._script_is_ours and seen.gate_open  # by the process before us: `remove` is owed
        self._unseen = False
        if seen.own is State.INIT_WAIT:
            return True
        if seen.own is State.CONNECTED and seen.otherend is State.CONNECTED:
            self.adopted = True  # `connect` sees whether the ring can be gone on with
            return True
        await self.close()
        return False

    async def close(self) -> None:
        """Go to Closed, through Closing where a frontend is there to see it. Nothing of its is mapped now."""
        self.adopted = False
        forget(self.journal_path)
        seen = await self.observe()
        if self.is_not_ours(seen):
            return
        if seen.own is not State.CLOSED:
            if seen.own is not State.CLOSING and (seen.otherend in ACTIVE or seen.otherend is State.INITIALISING):
                await self.switch(State.CLOSING)
            try:
                await self.until(
                    lambda seen: True if seen.otherend not in ACTIVE or self.is_not_ours(seen) else None,
                    f"the frontend in domain {self.otherend.domid} to close",
                    deadline_s=CLOSE_S,
                )
            except OtherendTimeout as late:
                self.log.warning("otherend.late", reason=str(late))
            if self.is_not_ours(self.seen):
                return
            await self.switch(State.CLOSED)

    async def wait_again(self, failed: bool) -> bool:
        """Wait at Closed: until the frontend begins again (True), or until the device is gone (False).

        Args:
            failed: the last connection ended by an error; then a frontend that has been at Initialising all the time
                does not count as beginning again, or a target that cannot be opened would be tried for ever.
        """

        def step(seen: Seen) -> bool | None:
            if self.stopping or self.is_not_ours(seen):
                return False
            if not seen.online or seen.own is State.CLOSING:
                return False
            return True if seen.otherend is State.INITIALISING and (self._moved or not failed) else None

        while True:
            if await self.until(step, "the frontend to begin again, or the toolstack to remove the device"):
                self._moved = False
                return True
            if self.stopping or self.is_not_ours(self.seen):
                return False
            if self.seen.own is State.CLOSING:  # the toolstack's, after we had Closed by ourselves
                await self.close()
                continue
            await self._undo_hotplug()
            if self.id.backend_domid != DOM0:
                await self._remove()
            await self.until(self._stirs_again, "the toolstack to remove the directory")

    def _stirs_again(self, seen: Seen) -> bool | None:
        """Whether the toolstack has done more than remove us: it may want us back, or write its 5 only now (T52)."""
        return True if self.stopping or self.is_not_ours(seen) or seen.online or seen.own is State.CLOSING else None

    async def _remove(self) -> None:
        """Remove our directory: in a driver domain nobody else does, and the toolstack waits for it (T53)."""
        keep = self.path.partition("/backend/")[0] + "/backend"
        with suppress(StoreError):  # the toolstack was first
            await self.store.transaction(lambda tx: prune(tx, self.path, keep))

    # -- hotplug ---------------------------------------------------------------------------------------------------

    async def _read_script(self) -> None:
        """Find the device's script, and whether it is ours to run: libxl runs those of the devices it manages (T25)."""
        script, managed = await self.read_all(self.path + "/script", self.id.libxl_path + "/backend")
        self._script = None if script is None else script.decode("utf-8", "replace")
        self._script_is_ours = script is not None and managed is None and self.services.hotplug is not None
        self._unseen = script is None and managed is not None

    async def _run_hotplug(self) -> None:
        """Run the `add` script, once in the device's life."""
        runner = self.services.hotplug
        if self.hotplug_ran or not self._script_is_ours or self._script is None or runner is None:
            return
        self.hotplug_ran = True
        self.timeline.record("hotplug", "start")
        try:
            await runner.run(self._script, "add", backend_path=self.path, device_class=self.id.device_class)
        except HotplugError as error:
            self.timeline.record("hotplug", "error")
            self.log.error("hotplug.failed", error=str(error))
            await self.report(error)
            await self._mark_failed(error)
        else:
            self.timeline.record("hotplug", "write physdets")

    async def _mark_failed(self, error: HotplugError) -> None:
        """Say what the script should have said itself, if it did not."""
        status, text = await self.read_all(self.path + "/hotplug-status", self.path + "/hotplug-error")
        if status is None or text is None:

            async def body(tx: Transaction) -> None:
                await tx.read(self.path + "/state")  # a removed directory stays removed (T7)
                await tx.write(self.path + "/hotplug-error", str(error))
                await tx.write(self.path + "/hotplug-status", "error")

            with suppress(NodeNotFound):
                await self.store.transaction(body)

    async def _undo_hotplug(self) -> None:
        """Run the `remove` script that is owed, then take `hotplug-status` away: our toolstack waits for that (T23)."""
        runner = self.services.hotplug
        if not self.hotplug_ran or self._script is None or runner is None:
            return
        self.hotplug_ran = False
        try:
            await runner.run(self._script, "remove", backend_path=self.path, device_class=self.id.device_class)
        except HotplugError as error:  # on remove a failure is told, and ignored (T25)
            self.log.warning("hotplug.failed", error=str(error))
        self.timeline.record("hotplug", "remove")
        with suppress(NodeNotFound):
            await self.store.rm(self.path + "/hotplug-status")
