"""A backend's device in the hands of the supervisor: how it appears, closes, and waits to begin again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from xenbusd.bus.counters import Measure
from xenbusd.bus.device import Device
from xenbusd.bus.finding import NOT_REMOVED, Finding, end
from xenbusd.bus.handover import forget
from xenbusd.bus.hotplug_step import HotplugStep
from xenbusd.bus.otherend import read_all
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.services import Services
from xenbusd.bus.state import ACTIVE, Seen, Side, State, backend_end_reason, parse_state
from xenbusd.errors import ConnectionEnded, OtherendTimeout, StoreError
from xenbusd.ids import DOM0
from xenbusd.store.prune import prune

CLOSE_S = 10.0
"""How long a frontend may take to close after an error of ours, before we close without it."""


class BackendLife(Device):
    """A device whose backend we are."""

    side = Side.BACKEND

    def __init__(
        self, services: Services, id: DeviceId, otherend_path: str | None = None, measures: Iterable[Measure] = ()
    ) -> None:
        super().__init__(services, id, otherend_path, measures)
        self.hotplug = HotplugStep(services, id, self.timeline, self.log, self.report)

    async def observe(self) -> Seen:
        """Read our `state`, `online` and `hotplug-status`, and the frontend's `state`."""
        own, online, status, otherend = await read_all(
            self.store,
            self.path + "/state",
            self.path + "/online",
            self.path + "/hotplug-status",
            self.otherend.path + "/state",
        )
        seen = Seen(
            own=parse_state(own),
            otherend=State.UNKNOWN if self.otherend_is_dead else parse_state(otherend),
            online=online == b"1",  # absent means 0 (T54)
            hotplug_status=None if status is None else status.decode("ascii", "replace"),
        )
        return self.note(seen)

    def end_reason(self, seen: Seen) -> str | None:
        """Why the connection has ended, or None."""
        return backend_end_reason(seen, self.state)

    async def appear(self) -> bool:
        """Find out what the device is: new, or left behind by a previous daemon (T15).

        Returns:
            Whether to begin now; otherwise `wait_again` says when.

        Raises:
            ConnectionEnded: there is nothing to do for this device.
        """
        seen = await self.begin()
        await self.hotplug.read()
        if seen.own is State.INITIALISING and seen.otherend is not State.UNKNOWN:
            return True
        self.hotplug.resume(seen)
        if seen.own is State.INIT_WAIT:
            return True
        if seen.own is State.CONNECTED and seen.otherend is State.CONNECTED:
            self.connection.adopted = True  # `connect` finds out whether the ring can be adopted
            return True
        await self.close()
        return False

    @contextmanager
    def adopting(self) -> Iterator[None]:
        """Log why the previous daemon's ring or page cannot be adopted, so that the device must close.

        Raises:
            ConnectionEnded: the one that the block raises.
        """
        try:
            yield
        except ConnectionEnded as ended:
            self.log.warning("device.unclean", reason=str(ended))
            raise

    async def close(self) -> None:
        """Go to Closed, through Closing if there is a frontend to see it. No page of the frontend is mapped any
        more."""
        forget(self.services.run_dir, self.id.log_name)
        seen = await self.observe()
        if self.is_not_ours(seen):
            return
        if seen.own is not State.CLOSED:
            if seen.own is not State.CLOSING and (seen.otherend in ACTIVE or seen.otherend is State.INITIALISING):
                await self.switch(State.CLOSING)
            try:
                await self.until(
                    lambda seen: True if seen.otherend not in ACTIVE or self.is_not_ours(seen) else None,
                    Finding(end(Side.FRONTEND, self.otherend.domid), "has not closed"),
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
                does not count as beginning again: otherwise a target that cannot be opened would be tried for ever.
        """

        def step(seen: Seen) -> bool | None:
            if self.stopping or self.is_not_ours(seen):
                return False
            if not seen.online or seen.own is State.CLOSING:
                return False
            begins = seen.otherend is State.INITIALISING and (self.connection.otherend_moved or not failed)
            return True if begins else None

        idle = Finding(end(Side.FRONTEND, self.otherend.domid), "has not begun again, nor was the device removed")
        while True:
            if await self.until(step, idle):
                return True
            if self.stopping or self.is_not_ours(self.seen):
                return False
            if self.seen.own is State.CLOSING:  # the toolstack wrote it after we had Closed by ourselves
                await self.close()
                continue
            await self.hotplug.remove()
            if self.id.backend_domid != DOM0:
                await self._remove()
            await self.until(self._toolstack_moves, NOT_REMOVED)

    def _toolstack_moves(self, seen: Seen) -> bool | None:
        """Whether the toolstack has acted, and not only by removing us: it may want us back, or write its 5 only now
        (T52)."""
        return True if self.stopping or self.is_not_ours(seen) or seen.online or seen.own is State.CLOSING else None

    async def _remove(self) -> None:
        """Remove our directory: in a driver domain nobody else removes it, and the toolstack waits for that (T53)."""
        keep = self.path.partition("/backend/")[0] + "/backend"
        with suppress(StoreError):  # the toolstack removed it first
            await self.store.transaction(lambda tx: prune(tx, self.path, keep))
