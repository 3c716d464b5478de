"""A frontend's device in the hands of the supervisor: how it appears, closes, and tries again.

Decision: D4.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from xenbusd.bus.counters import Measure
from xenbusd.bus.device import Device
from xenbusd.bus.finding import NOT_REMOVED, Finding, not_at
from xenbusd.bus.otherend import read_all
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.services import Services
from xenbusd.bus.state import Seen, Side, State, frontend_end_reason, parse_state
from xenbusd.errors import ConnectionEnded, OtherendTimeout

CLOSE_S = 5.0
"""How long a backend may take for each step of a close; Linux's frontends wait as long (xenbus_reset_state)."""

BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before another try with a backend that keeps closing on us."""

_BACKEND_PRESENT = (State.INIT_WAIT, State.INITIALISED, State.CONNECTED)


class FrontendLife(Device):
    """A device whose frontend we are."""

    side = Side.FRONTEND

    def __init__(
        self, services: Services, id: DeviceId, otherend_path: str | None = None, measures: Iterable[Measure] = ()
    ) -> None:
        super().__init__(services, id, otherend_path, measures)
        self.attempts = 0
        """Connections since the last one that reached Connected."""

    async def observe(self) -> Seen:
        """Read our `state`, and the backend's `state` and `online`."""
        own, online, otherend = await read_all(
            self.store, self.path + "/state", self.otherend.path + "/online", self.otherend.path + "/state"
        )
        return self.note(Seen(parse_state(own), parse_state(otherend), online == b"1", None))

    def end_reason(self, seen: Seen) -> str | None:
        """Why the connection has ended, or None."""
        return frontend_end_reason(seen, self.state)

    async def until_ended(self) -> str:
        """Wait for as long as the connection lasts. We follow a backend that switches to Closing; requests under way
        can still be finished after that, since the backend serves the ring until we have Closed (T50)."""
        reason = await super().until_ended()
        if self.seen.own is State.CONNECTED and self.seen.otherend is State.CLOSING:
            with suppress(ConnectionEnded):
                await self.switch(State.CLOSING)
        return reason

    async def appear(self) -> bool:
        """Begin at Initialising. If a previous agent died with a ring, the ring's pages are gone, so close first,
        letting the backend see each step, as a kexec'd kernel does (T51).

        Returns:
            True: begin now.

        Raises:
            ConnectionEnded: there is nothing to do for this device.
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
        """Wait at Closed: True, and back at Initialising, if the backend's side is still wanted; False if it is not.

        Args:
            failed: the last connection ended by an error of the backend's.
        """
        seen = await self.observe()
        if not self.stopping and not self.is_not_ours(seen) and seen.online:
            pause = BACK_OFF_S[min(self.attempts + failed, len(BACK_OFF_S) - 1)]
            self.attempts += 1
            try:
                pausing = Finding("this frontend", f"pauses for {pause:g} s before it tries again")
                await self.until(self._no_more, pausing, deadline_s=pause)
            except OtherendTimeout:
                await self.switch(State.INITIALISING)
                return True
        await self.until(self._gone_or_back, NOT_REMOVED)
        if self.stopping or self.is_not_ours(self.seen):
            return False
        await self.switch(State.INITIALISING)
        return True

    def _no_more(self, seen: Seen) -> bool | None:
        return True if self.stopping or self.is_not_ours(seen) or not seen.online else None

    def _gone_or_back(self, seen: Seen) -> bool | None:
        return True if self.stopping or self.is_not_ours(seen) or seen.online else None

    async def _wait_for_backend(self, state: State) -> None:
        """Give the backend time to show `state`, or one that follows it."""

        def step(seen: Seen) -> bool | None:
            arrived = seen.otherend in (state, State.CLOSED, State.UNKNOWN) or self.is_not_ours(seen)
            return True if arrived or (not seen.online and seen.otherend is State.INITIALISING) else None

        try:
            await self.until(step, not_at(Side.BACKEND, self.otherend.domid, state), deadline_s=CLOSE_S)
        except OtherendTimeout as late:
            self.log.warning("otherend.late", reason=str(late))
