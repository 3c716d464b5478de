"""A device, seen from one of its ends: looking at the store, waiting on it, and the one hand that writes `state`."""

from __future__ import annotations

import asyncio
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from xenbusd.bus.counters import Counters, Measure
from xenbusd.bus.nodes import Value, encode, keys
from xenbusd.bus.otherend import Directory, Otherend
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.ports import Ports
from xenbusd.bus.state import Seen, Side, State, may_switch, parse_state
from xenbusd.bus.timeline import Timelines
from xenbusd.errors import (
    AccessDenied,
    ConnectionEnded,
    HypercallError,
    LocalProtocolError,
    NodeNotFound,
    OtherendGone,
    OtherendTimeout,
    ResourceError,
    StoreError,
)
from xenbusd.host.interface import Host
from xenbusd.ids import Domid
from xenbusd.log import Logger
from xenbusd.store.client import StoreClient
from xenbusd.store.prune import prune
from xenbusd.store.transaction import Transaction
from xenbusd.store.watch import Watch

T = TypeVar("T")

ERROR_TEXT_MAX = 512
"""Bytes of an error node; a text repeats at most some of what the other end wrote."""


class HotplugRunner(Protocol):
    """Whoever runs hotplug scripts; see xenbusd.hotplug."""

    async def run(self, script: str, action: str, *, backend_path: str, device_class: str) -> None:
        """Run one script to its end; raise HotplugError if it fails."""


@dataclass
class Services:
    """What every device of one process shares."""

    store: StoreClient
    host: Host
    ports: Ports
    domid: Domid
    """Our own domain."""
    log: Logger
    hotplug: HotplugRunner | None = None
    """None where scripts are somebody else's to run."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Each class's table of the configuration file."""
    run_dir: str = "/run/xenbusd"
    """Where drivers may put sockets."""
    timelines: Timelines = field(default_factory=Timelines)


class Device(ABC):
    """One end of a device. `BackendDevice` and `FrontendDevice` add what their drivers call.

    Args:
        services: what all devices share.
        id: which device.
        otherend_path: the other end's directory, where our own names it; by default where it belongs.
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
        """Our directory: what the toolstack says of this device."""
        opposite_domid = id.frontend_domid if self.side is Side.BACKEND else id.backend_domid
        self.otherend = Otherend(services.store, opposite_domid, otherend_path or id.path(self.side.opposite))
        self.options: Mapping[str, Any] = services.options.get(id.device_class, {})
        self.log = services.log.bind(device=id.log_name)
        self.timeline = services.timelines.start(id)
        self.counters = Counters(measures)
        """Sums over all queues, for `show` and the closing log line; a driver counts here, or for one queue in its
        link."""
        self.histograms = self.counters.histograms
        """The driver's own, for what belongs to no queue."""
        self.details: Callable[[], dict[str, object]] | None = None
        """More for `show` while connected: the indices of the rings."""
        self.state = State.UNKNOWN
        """The state that we wrote last, or found when we appeared."""
        self.adopted = False
        """Found Connected on both ends: go on with its ring, and write nothing until it closes."""
        self.stopping = False
        """The daemon ends; leave in order."""
        self.crashed = False
        """Its task has ended by an error outside any connection."""
        self.waiting_for = ""
        """Who must move next, in words."""
        self.seen = Seen(State.UNKNOWN, State.UNKNOWN, False, None)
        self.failure: Exception | None = None
        """Set by a data path that cannot go on; the next look raises it."""
        self.on_wake: set[Callable[[], None]] = set()
        """Called at each poke: by whoever waits for one, and by links that wait on their ring as well."""
        self.otherend_dead = False
        """Its domain has been destroyed, whatever its directory still says."""
        self.run_paths: set[str] = set()
        self._watch: Watch | None = None

    def run_path(self, suffix: str) -> str:
        """A path of this device's own in the run directory, such as /run/xenbusd/vbd-51712.sock; what stands there
        when the connection is over is removed."""
        number = self.id.devid if self.side is Side.FRONTEND else f"{self.id.frontend_domid}-{self.id.devid}"
        path = f"{self.services.run_dir}/{self.id.device_class}-{number}.{suffix}"
        self.run_paths.add(path)
        return path

    def remove_run_paths(self) -> None:
        """Remove what the driver left in the run directory."""
        for path in self.run_paths:
            with suppress(FileNotFoundError):
                os.unlink(path)
        self.run_paths.clear()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Have the other end's `state` watched, as the 2006 paper says; each change pokes us."""
        self._watch = await self.store.watch(self.otherend.state_path, wake=self.wake)
        try:
            yield
        finally:
            await self._watch.unwatch()
            self._watch = None

    # -- looking and waiting ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something about this device may have changed: look again. Safe to call any number of times."""
        for wake in tuple(self.on_wake):
            wake()

    def fail(self, error: Exception) -> None:
        """End the connection because of an error on its data path."""
        if self.failure is None:
            self.failure = error
        self.wake()

    @contextmanager
    def _wakes(self) -> Iterator[asyncio.Event]:
        """A dirty flag for one that waits: each has its own, so that none takes another's hints away."""
        dirty = asyncio.Event()
        self.on_wake.add(dirty.set)
        try:
            yield dirty
        finally:
            self.on_wake.discard(dirty.set)

    def forget_hints(self) -> None:
        """Forget the watch's hints so far: what they hint at is about to be read. Their pokes come all the same."""
        if self._watch is not None:
            self._watch.take()

    @abstractmethod
    async def observe(self) -> Seen:
        """Read what this moment's store says. Nothing is taken from events (T2)."""

    @abstractmethod
    def end_reason(self, seen: Seen) -> str | None:
        """Why the connection is over, or None."""

    async def read_all(self, *paths: str) -> list[bytes | None]:
        """Read several nodes at once; None for one that is not there, or not for us (T9)."""
        answers = await asyncio.gather(*map(self.store.read, paths), return_exceptions=True)
        values: list[bytes | None] = []
        for answer in answers:
            if isinstance(answer, bytes):
                values.append(answer)
            elif isinstance(answer, NodeNotFound | AccessDenied):
                values.append(None)
            else:
                raise answer
        return values

    async def begin(self) -> Seen:
        """Look for the first time. A new device without its other end is told of (T17).

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
        """Keep what was seen, and put the steps of others on the timeline: the other end's, and the toolstack's."""
        if seen.own is not self.seen.own and seen.own not in (self.state, State.UNKNOWN) and self.state:
            self.timeline.record(self.side.value, seen.own.title)
        if seen.otherend is not self.seen.otherend and seen.own is not State.UNKNOWN:
            self.timeline.record(self.side.opposite.value, seen.otherend.title if seen.otherend else "gone")
        self.seen = seen
        return seen

    async def until(self, step: Callable[[Seen], T | None], waiting_for: str, *, deadline_s: float | None = None) -> T:
        """Look, and look again after each change, until `step` returns something.

        Args:
            step: a predicate on one look; may raise ConnectionEnded.
            waiting_for: who must move, in words for an administrator.
            deadline_s: seconds; None waits for as long as it takes.

        Raises:
            OtherendTimeout: the deadline passed.
        """
        self.waiting_for = waiting_for
        try:
            with self._wakes() as dirty:
                async with asyncio.timeout(deadline_s):
                    while True:
                        dirty.clear()
                        self.forget_hints()
                        answer = step(await self.observe())
                        if answer is not None:
                            return answer
                        await dirty.wait()
        except TimeoutError:
            raise OtherendTimeout(f"waited {deadline_s:g} s for {waiting_for}") from None
        finally:
            self.waiting_for = ""

    def check(self, seen: Seen) -> None:
        """Raise what ends the connection, if anything does.

        Raises:
            ConnectionEnded: the connection is over.
            Exception: whatever `fail` was given.
        """
        if self.failure is not None:
            raise self.failure
        if self.stopping:
            raise ConnectionEnded("the daemon stops")
        if reason := self.end_reason(seen):
            raise ConnectionEnded(reason)

    async def until_ended(self) -> str:
        """Wait for as long as the connection lasts, following the other end into Closing when it leads.

        Returns:
            Why it is over.

        Raises:
            Exception: what `fail` was given.
        """
        try:
            while True:
                await self.follow(await self.until(self._stirred, ""))
        except ConnectionEnded as over:
            return str(over)

    def _stirred(self, seen: Seen) -> Seen | None:
        self.check(seen)
        return seen if seen.otherend is State.CLOSING and seen.own is State.CONNECTED else None

    async def follow(self, seen: Seen) -> None:
        """Answer the other end's Closing with ours; the ring goes on until the frontend has Closed (T50).

        Raises:
            ConnectionEnded: the connection is over; or whatever `fail` was given.
        """
        if self._stirred(seen):
            await self.switch(State.CLOSING)

    async def changes(self) -> AsyncIterator[None]:
        """Yield once at once, and again after each hint that something about this device may have changed: a key of our
        own directory, or the other end's `state`, if only written again (T34). For a driver's own task, which re-reads
        what it cares for; it ends when that task is cancelled.
        """
        with self._wakes() as dirty:
            while True:
                dirty.clear()
                self.forget_hints()
                yield
                await dirty.wait()

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
            LocalProtocolError: no such step; our bug.
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

    async def republish(self, values: Mapping[str, Value]) -> None:
        """Write keys of our directory while Connected, and `state` once more with the value that it has: the other end
        sees that, and reads them again (T34). All in one transaction; no step of state.

        Args:
            values: by key; feature_upper and feature-upper are one.

        Raises:
            ConnectionEnded: the device is no longer Connected, or no longer ours.
        """
        state_path, written = self.path + "/state", keys(values)

        async def body(tx: Transaction) -> None:
            try:
                standing = parse_state(await tx.read(state_path))
            except NodeNotFound:
                raise ConnectionEnded("removed") from None
            if standing is not State.CONNECTED or self.state is not State.CONNECTED:
                raise ConnectionEnded(f"{standing.title} is no state to publish keys in")
            writes = [tx.write(f"{self.path}/{key}", value) for key, value in written.items()]
            await asyncio.gather(*writes, tx.write(state_path, encode(int(standing))))

        await self.store.transaction(body)
        self.timeline.record(self.side.value, f"write {', '.join(written)}")

    async def report(self, error: Exception) -> bool:
        """Leave an error where tools look for it: `error/<nodename>/error` = "<errno> <text>" (T58).

        Returns:
            Whether it is there now. A device that has gone leaves nothing behind (T7).
        """
        text = f"{errno_of(error)} {error}".encode("utf-8", "backslashreplace")[:ERROR_TEXT_MAX]

        async def body(tx: Transaction) -> None:
            await tx.read(self.path + "/state")
            await tx.write(self.id.error_path(self.side), text)

        try:
            await self.store.transaction(body)
        except StoreError:  # gone; or our part of the store is full: the log has it too
            return False
        return True

    async def clear_error(self) -> None:
        """Remove what `report` left, and the directories that held only it."""
        path = self.id.error_path(self.side)
        with suppress(StoreError):
            await self.store.read(path)  # most devices never had one: do not write for nothing
            home = path.partition("/error/")[0]
            await self.store.transaction(lambda tx: prune(tx, path.removesuffix("/error"), home + "/error"))


def errno_of(error: Exception) -> int:
    """The errno that stands for an error in an error node."""
    if isinstance(error, ResourceError | HypercallError | StoreError):
        return error.errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, OtherendTimeout):
        return errno.ETIMEDOUT
    if isinstance(error, OtherendGone):
        return errno.ENOENT
    return errno.EINVAL
