"""One end of a device: its view of the store, its waits, and the one function that writes `state`.

Theory of operation. A `Device` is led through its life by one task of its own (see `supervisor`), and everything about
it runs on the event loop of its process; none of its methods may be called from another thread. Watches are hints and
nothing else: each of them wakes every waiter, and a waiter observes the store anew (`until`). One observation is a
`Seen`, from which the pure functions in `state` decide whether the connection has ended.

Two faces. The methods here and in `BackendLife` and `FrontendLife` are for the bus: the scan creates a device, the
supervisor leads it, rings and pages wait with it. A driver gets a `Handle` on it, `BackendDevice` or `FrontendDevice`,
which has the names that an author may use and no others. A data path may call `fail` at any time; everything else is
called by the device's task or by tasks that the driver started within `run`.

Decision: D73.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from xenbusd.bus import error_node
from xenbusd.bus.counters import Counters, Measure
from xenbusd.bus.finding import Finding
from xenbusd.bus.nodes import Value, encode
from xenbusd.bus.otherend import Directory, Otherend
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.services import Services
from xenbusd.bus.state import Seen, Side, State, may_switch, parse_state
from xenbusd.errors import ConnectionEnded, LocalProtocolError, NodeNotFound, OtherendGone, OtherendTimeout
from xenbusd.store.transaction import Transaction
from xenbusd.store.watch import Watch

T = TypeVar("T")


@dataclass(slots=True)
class Connection:
    """One connection of a device, from its beginning to its end; the next one begins afresh."""

    adopted: bool = False
    """Found Connected on both ends: keep its ring, and write nothing until it closes."""
    failure: Exception | None = None
    """The data path's first error; `check` raises it."""
    otherend_moved: bool = False
    """The other end has left Initialising. If it is at Initialising again, it is reconnecting."""


class Device(ABC):
    """One end of a device, as the bus handles it.

    Args:
        services: the services that all devices of the process share.
        id: which device.
        otherend_path: the other end's directory, as our own directory names it; by default its usual place.
        measures: the driver's own counters and histograms.
    """

    side: ClassVar[Side]

    def __init__(
        self, services: Services, id: DeviceId, otherend_path: str | None = None, measures: Iterable[Measure] = ()
    ) -> None:
        self.services = services
        self.store = services.store
        self.id = id
        self.path = id.path(self.side)
        self.own = Directory(services.store, self.path)
        """Our directory, in which the toolstack describes this device."""
        opposite_domid = id.frontend_domid if self.side is Side.BACKEND else id.backend_domid
        self.otherend = Otherend(services.store, opposite_domid, otherend_path or id.path(self.side.opposite))
        self.otherend_is_dead = False
        """The other end's domain has been destroyed, whatever its directory still says (T57)."""
        self.options: Mapping[str, Any] = services.options.get(id.device_class, {})
        self.log = services.log.bind(device=id.log_name)
        self.timeline = services.timelines.start(id)
        self.counters = Counters(measures)
        """Sums over all queues, for `show` and the closing log line."""
        self.details: Callable[[], dict[str, object]] | None = None
        """Further facts for `show` while connected: the indices of the rings."""
        self.state = State.UNKNOWN
        """The state that we wrote last, or found when we appeared."""
        self.seen = Seen(State.UNKNOWN, State.UNKNOWN, False, None)
        """The latest observation."""
        self.connection = Connection()
        self.stopping = False
        """The daemon is stopping: leave in order."""
        self.waiting_for: Finding | None = None
        """The event that has not happened yet; None while the device waits for nothing in particular."""
        self.condition: Callable[[], Iterable[Finding]] = tuple
        """The findings of its driver; see `Driver.condition`."""
        self.on_wake: set[Callable[[], None]] = set()
        """Functions called at each wake, added by waiters, and by links that wait for their ring as well."""
        self.run_paths: set[str] = set()
        self._watch: Watch | None = None

    def run_path(self, suffix: str) -> str:
        """See `Handle.run_path`."""
        path = self.id.run_path(self.side, self.services.run_dir, suffix)
        self.run_paths.add(path)
        return path

    def remove_run_paths(self) -> None:
        """Remove the files that the driver left in the run directory."""
        for path in self.run_paths:
            with suppress(FileNotFoundError):
                os.unlink(path)
        self.run_paths.clear()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Have the other end's `state` watched, as the 2006 paper says; each change wakes us."""
        self._watch = await self.store.watch(self.otherend.path + "/state", wake=self.wake)
        try:
            yield
        finally:
            await self._watch.unwatch()
            self._watch = None

    # -- observing and waiting -------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something about this device may have changed: observe it again. Safe to call any number of times."""
        for wake in tuple(self.on_wake):
            wake()

    def fail(self, error: Exception) -> None:
        """End the connection because of an error on its data path."""
        if self.connection.failure is None:
            self.connection.failure = error
        self.wake()

    @contextmanager
    def wakes(self) -> Iterator[asyncio.Event]:
        """A dirty flag for one waiter: each has its own, so that none takes another's hints away."""
        dirty = asyncio.Event()
        self.on_wake.add(dirty.set)
        try:
            yield dirty
        finally:
            self.on_wake.discard(dirty.set)

    def forget_hints(self) -> None:
        """Forget the watch's hints so far: the nodes that they point to are about to be read. Waiters stay woken."""
        if self._watch is not None:
            self._watch.take()

    @abstractmethod
    async def observe(self) -> Seen:
        """Read the nodes of a `Seen`, all at once. Nothing is taken from events (T2)."""

    @abstractmethod
    def end_reason(self, seen: Seen) -> str | None:
        """Why the connection has ended, or None."""

    async def begin(self) -> Seen:
        """Observe for the first time. A new device without its other end gets an error node (T17).

        Raises:
            ConnectionEnded: the directory has gone already.
        """
        seen = await self.observe()
        if seen.own is State.UNKNOWN:
            raise ConnectionEnded("removed")
        self.state = seen.own
        self.timeline.record(self.side.value, seen.own.title)
        if seen.own is State.INITIALISING and seen.otherend is State.UNKNOWN:
            missing = OtherendGone(f"{self.otherend.path} has no state: the {self.side.opposite.value} is missing")
            if await self.report(missing):
                self.log.warning("otherend.fault", error=str(missing))
        return seen

    def note(self, seen: Seen) -> Seen:
        """Keep an observation, and put the steps of others on the timeline: the other end's, and the toolstack's."""
        if seen.own is not self.seen.own and seen.own not in (self.state, State.UNKNOWN) and self.state:
            self.timeline.record(self.side.value, seen.own.title)
        if seen.otherend is not self.seen.otherend and seen.own is not State.UNKNOWN:
            self.timeline.record(self.side.opposite.value, seen.otherend.title if seen.otherend else "gone")
        if seen.otherend is not State.INITIALISING:
            self.connection.otherend_moved = True
        self.seen = seen
        return seen

    async def until(
        self,
        step: Callable[[Seen], T | Finding | None],
        waiting_for: Finding | None = None,
        *,
        deadline_s: float | None = None,
    ) -> T:
        """See `Handle.until`."""
        self.waiting_for = waiting_for
        try:
            with self.wakes() as dirty:
                async with asyncio.timeout(deadline_s):
                    while True:
                        dirty.clear()
                        self.forget_hints()
                        answer = step(await self.observe())
                        if isinstance(answer, Finding):
                            self.waiting_for = answer
                        elif answer is not None:
                            return answer
                        await dirty.wait()
        except TimeoutError:
            lacking = self.waiting_for
            why = f"{lacking.who} {lacking.what}" if lacking is not None else "nothing has happened"
            raise OtherendTimeout(f"{why} after {deadline_s:g} s") from None
        finally:
            self.waiting_for = None

    def check(self, seen: Seen) -> None:
        """See `Handle.check`."""
        if self.connection.failure is not None:
            raise self.connection.failure
        if self.stopping:
            raise ConnectionEnded("the daemon stops")
        if reason := self.end_reason(seen):
            raise ConnectionEnded(reason)

    async def until_ended(self) -> str:
        """See `Handle.until_ended`."""
        try:
            while True:
                await self.follow(await self.until(self._otherend_closes))
        except ConnectionEnded as ended:
            return str(ended)

    def _otherend_closes(self, seen: Seen) -> Seen | None:
        self.check(seen)
        return seen if seen.otherend is State.CLOSING and seen.own is State.CONNECTED else None

    async def follow(self, seen: Seen) -> None:
        """Answer the other end's Closing with ours; the ring is served until the frontend has Closed (T50).

        Raises:
            ConnectionEnded: the connection has ended; or the error that `fail` was given.
        """
        if self._otherend_closes(seen):
            await self.switch(State.CLOSING)

    def is_not_ours(self, seen: Seen) -> bool:
        """Whether the directory has gone, or a new one stands in its place."""
        return seen.own is State.UNKNOWN or (seen.own is State.INITIALISING and self.state is not State.INITIALISING)

    # -- writing ---------------------------------------------------------------------------------------------------

    async def switch(
        self, state: State, keys: Mapping[str, Value] | None = None, *, remove: Collection[str] = ()
    ) -> None:
        """Write our `state`, after writing `keys` and removing others, in one transaction that reads it first (T7).

        A removed directory stays removed. A value that stands there already is not written again (T8). A Closing or
        Closed that the toolstack wrote is never overwritten by a step towards Connected.

        Raises:
            ConnectionEnded: the directory is gone, or the toolstack closes the device.
            LocalProtocolError: the step is illegal, which is a bug of ours.
        """
        state_path = self.path + "/state"

        async def body(tx: Transaction) -> State:
            try:
                standing = parse_state(await tx.read(state_path))
            except NodeNotFound:
                raise ConnectionEnded("removed") from None
            if not may_switch(self.side, standing, state):
                if standing in (State.CLOSING, State.CLOSED):
                    raise ConnectionEnded("the toolstack closes it")
                if standing is State.INITIALISING and self.state is not State.INITIALISING:
                    raise ConnectionEnded("replaced")
                raise LocalProtocolError(f"{self.id}: {self.side.value} {standing.title} -> {state.title}")
            writes: list[Awaitable[None]] = [
                tx.write(f"{self.path}/{key}", encode(value)) for key, value in (keys or {}).items()
            ]
            writes += [tx.rm(f"{self.path}/{key}") for key in remove]
            if standing is not state:
                writes.append(tx.write(state_path, encode(int(state))))
            await asyncio.gather(*writes)
            return standing

        standing = await self.store.transaction(body)
        self.state = state
        if standing is not state:
            self.timeline.record(self.side.value, state.title)
            self.log.debug("state.switched", side=self.side.value, old=standing.title, new=state.title)

    async def now_connected(self, keys: Mapping[str, Value] | None = None) -> None:
        """Switch to Connected, with `keys` in the same transaction, remove an old error node, and log it.

        Raises:
            ConnectionEnded: as `switch`.
        """
        await self.switch(State.CONNECTED, keys)
        await self.clear_error()
        self.log.info("device.connected", **self._with_whom(), by_otherend=True)

    def now_adopted(self) -> None:
        """Log that a connection of the previous daemon is ours now; the store already says Connected."""
        self.log.info("device.adopted", **self._with_whom(), by_otherend=True)

    def _with_whom(self) -> dict[str, object]:
        return {self.side.opposite.value: self.otherend.domid}

    async def report(self, error: Exception) -> bool:
        """See `Handle.report`."""
        return await error_node.report(self.store, self.id, self.side, error)

    async def clear_error(self) -> None:
        """See `Handle.clear_error`."""
        await error_node.clear_error(self.store, self.id, self.side)
