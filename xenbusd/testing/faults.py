"""Faults injected into one process: it dies at its n-th step, loses the store there, hangs, is refused a call, gets
watch events late and out of order, writes lies, or scribbles over the pages that it shares.

    faults = Faults()
    guest = await machine.start(Domid(5), MyFrontend, faults=faults)
    faults.arm(cut_at=7)
    ...
    await faults.struck.wait()

A step is an act that the rest of the machine can notice: a batch of requests to the store, or a call that shares, maps
or binds. Waits between two steps cannot be noticed, so dying at each step covers each await that matters.
"""

from __future__ import annotations

import asyncio
import errno
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from xenbusd.errors import EventChannelError, GrantError, StoreLost
from xenbusd.host.interface import Copy, EventChannels, Grants, Host, Mapping, Share
from xenbusd.host.sim.client import SimHost
from xenbusd.ids import Domid, Gref, Port
from xenbusd.ring.layout import HEADER_BYTES, REQ_PROD, RSP_PROD, U32
from xenbusd.store.client import StoreClient
from xenbusd.store.transport import Transport
from xenbusd.store.watch import Watch
from xenbusd.store.wire import Op

CALLS = ("share", "alloc_unbound", "map", "bind_interdomain")
"""Calls of the host interface that can be refused, in the order of a handshake."""

ABSURD = (0, 1, 33, 4_000_000, 0x7FFF_FFFF, 0x8000_0000, U32 - 7, U32)
"""Values of hostile ring indices."""


PLAUSIBLE = bytes(600) + bytes(range(64)) * 4 + bytes(range(256))
"""Bytes of slots that are nearly valid: many zeros, some small numbers, and a few of any value."""


class Faults:
    """The faults of one process, and a record of its acts. Pass the object to `Machine.start`, for one process only.

    Args:
        seed: the seed of everything random here.
    """

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.steps = 0
        """Steps taken since `arm`."""
        self.calls: Counter[str] = Counter()
        """How many times each of `CALLS` was made since `arm`."""
        self.struck = asyncio.Event()
        """Set once the armed fault has happened."""
        self.dead = False
        """True once the process was cut: nothing that it still does has an effect outside."""
        self.frozen = False
        """Set to make the process hang: its requests to the store are not sent. The pages that it shares and has mapped
        stay."""
        self.late_s = 0.0
        """Delay of each watch event, at most. Events overtake each other, and some arrive twice."""
        self.lies: dict[str, bytes] = {}
        """Absolute path of a node -> the value that is written to it in place of the driver's."""
        self.written: dict[str, bytes] = {}
        """Every node that the process wrote, with the last value that it meant to write."""
        self.shares: list[Share] = []
        self.mappings: list[Mapping] = []
        self.ports: list[Port] = []
        """Every share, mapping and port that was ever open."""
        self.on_cut: Callable[[], None] = lambda: None
        """Closes the host interface and the store; set by the process."""
        self.on_lose: Callable[[], None] = lambda: None
        """Ends the connection to the store; set by the store client."""
        self._cut_at = self._lose_store_at = self._refuse_at = 0
        self._refuse = ""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def arm(self, *, cut_at: int = 0, lose_store_at: int = 0, refuse: str = "", refuse_at: int = 1) -> None:
        """Count steps from 0 again, and arm one fault; without arguments, disarm.

        Args:
            cut_at: die, as by SIGKILL, instead of taking this step; the first is 1.
            lose_store_at: lose the connection to the store at this step.
            refuse: refuse a call, one of `CALLS` ...
            refuse_at: ... the n-th time that it is made.
        """
        self.steps = 0
        self.calls.clear()
        self.struck.clear()
        self._cut_at, self._lose_store_at, self._refuse, self._refuse_at = cut_at, lose_store_at, refuse, refuse_at

    def step(self) -> None:
        """Count a step; die at it if that is armed. The process calls this."""
        self.steps += 1
        if self.steps == self._cut_at:
            self.dead = True
            self._on_loop(self.on_cut)
            self._on_loop(self.struck.set)
        elif self.steps == self._lose_store_at:
            self._on_loop(self.on_lose)
            self._on_loop(self.struck.set)

    def refused(self, call: str) -> int:
        """Count the step of a call; return the errno with which it is refused, or 0."""
        if not self.dead:
            self.calls[call] += 1
            self.step()
        if self.dead:
            return errno.ENODEV
        if call == self._refuse and self.calls[call] == self._refuse_at:
            self._on_loop(self.struck.set)
            return errno.ENOMEM
        return 0

    def _on_loop(self, action: Callable[[], None]) -> None:
        """Run an action on the event loop: a mapping is made in a thread of its own."""
        if threading.get_ident() == self._thread:
            action()
        else:
            self._loop.call_soon_threadsafe(action)

    def scribble(self, mappings_before: int = 0, shares_before: int = 0) -> None:
        """Overwrite the pages that it shares or has mapped, as a hostile end may at any moment: with noise, with absurd
        ring indices, or with nearly valid slots and indices that publish them.

        Args:
            mappings_before: the first so many of `mappings` are spared: those of other devices.
            shares_before: likewise of `shares`.
        """
        for view in self._views(mappings_before, shares_before):
            words = view[:HEADER_BYTES].cast("I")
            match self.random.randrange(4):
                case 0:
                    view[:] = self.random.randbytes(len(view))
                case 1:
                    for word in range(4):
                        words[word] = self.random.choice(ABSURD)
                case _:
                    plausible = self.random.choices(PLAUSIBLE, k=len(view) - HEADER_BYTES)
                    view[HEADER_BYTES:] = bytes(plausible)
                    words[REQ_PROD] = (words[REQ_PROD] + self.random.randrange(1, 9)) & U32
                    words[RSP_PROD] = (words[RSP_PROD] + self.random.randrange(2)) & U32
            words.release()

    def _views(self, mappings_before: int, shares_before: int) -> list[memoryview]:
        """Pages that are still held and are writable."""
        views: list[memoryview] = []
        held: list[Share | Mapping] = [*self.mappings[mappings_before:], *self.shares[shares_before:]]
        for pages in held:
            try:
                if not pages.view.readonly:
                    views.append(pages.view)
            except ValueError:  # released: the pages were given back meanwhile
                continue
        return views


class FaultyStore(StoreClient):
    """A store client with faults."""

    def __init__(self, host: Host, faults: Faults, *, window: int) -> None:
        super().__init__(host.store, window=window)
        self._faults = faults
        self._asked = False
        faults.on_lose = self._lose

    def ask(
        self, op: int, path: str, payload: bytes, tx_id: int = 0, answer: asyncio.Future[Any] | None = None
    ) -> asyncio.Future[Any]:
        """As `StoreClient.ask`, with a lie in place of a value where there is one."""
        faults = self._faults
        if faults.dead:
            future = asyncio.get_running_loop().create_future() if answer is None else answer
            future.set_exception(StoreLost("this process was cut"))
            return future
        if op == Op.WRITE:
            wire, _, value = payload.partition(b"\0")
            faults.written[path] = value
            payload = wire + b"\0" + faults.lies.get(path, value)
        self._asked = True
        return super().ask(op, path, payload, tx_id, answer)

    _ask = ask

    def _flush(self) -> None:
        if self._asked:
            self._asked = False
            self._faults.step()
        if self._faults.dead or self._faults.frozen:
            self._flushing = False
        else:
            super()._flush()

    def _lose(self) -> None:
        transport: Transport | None = self._transport
        if transport is not None:
            transport.abort()

    async def watch(self, path: str, *, depth: int = 0, wake: Callable[[], None] | None = None) -> Watch:
        """As `StoreClient.watch`; its hints are late while `Faults.late_s` is above 0."""
        watch = await super().watch(path, depth=depth, wake=wake)
        faults, loop, in_time = self._faults, asyncio.get_running_loop(), watch.hint

        def hint(path: str) -> None:
            if not faults.late_s:
                in_time(path)
                return
            for _ in range(faults.random.choice((1, 1, 2))):
                loop.call_later(faults.random.uniform(0, faults.late_s), in_time, path)

        watch.hint = hint  # type: ignore[method-assign]  # the session knows the object, not the method
        return watch


class FaultyGrants(Grants):
    """Grants of which some are refused."""

    def __init__(self, grants: Grants, faults: Faults) -> None:
        self._grants = grants
        self._faults = faults

    def map(self, domid: Domid, grefs: Sequence[Gref], *, writable: bool = True) -> Mapping:
        """See `Grants.map`."""
        if code := self._faults.refused("map"):
            raise GrantError("xengnttab_map_domain_grant_refs", code, f"domain {domid}, a fault made for a test")
        mapping = self._grants.map(domid, grefs, writable=writable)
        self._faults.mappings.append(mapping)
        return mapping

    def copy(self, segments: Sequence[Copy]) -> list[int]:
        """See `Grants.copy`."""
        return self._grants.copy(segments)

    def share(self, domid: Domid, pages: int, *, writable: bool = True) -> Share:
        """See `Grants.share`."""
        if code := self._faults.refused("share"):
            raise GrantError("xengntshr_share_pages", code, f"domain {domid}, a fault made for a test")
        share = self._grants.share(domid, pages, writable=writable)
        self._faults.shares.append(share)
        return share


class FaultyEvents(EventChannels):
    """Event channels of which some are refused."""

    def __init__(self, events: EventChannels, faults: Faults) -> None:
        self._events = events
        self._faults = faults
        self.fd = events.fd

    def alloc_unbound(self, domid: Domid) -> Port:
        """See `EventChannels.alloc_unbound`."""
        if code := self._faults.refused("alloc_unbound"):
            raise EventChannelError("xenevtchn_bind_unbound_port", code, f"domain {domid}, a fault made for a test")
        return self._note(self._events.alloc_unbound(domid))

    def bind_interdomain(self, domid: Domid, otherend_port: Port) -> Port:
        """See `EventChannels.bind_interdomain`."""
        if code := self._faults.refused("bind_interdomain"):
            raise EventChannelError("xenevtchn_bind_interdomain", code, f"domain {domid}, a fault made for a test")
        return self._note(self._events.bind_interdomain(domid, otherend_port))

    def _note(self, port: Port) -> Port:
        self._faults.ports.append(port)
        return port

    def notify(self, port: Port) -> None:
        """See `EventChannels.notify`. A dead process sends no notification."""
        if not self._faults.dead:
            self._events.notify(port)

    def pending(self) -> list[Port]:
        """See `EventChannels.pending`."""
        return [] if self._faults.dead else self._events.pending()

    def unmask(self, port: Port) -> None:
        """See `EventChannels.unmask`."""
        if not self._faults.dead:
            self._events.unmask(port)

    def unbind(self, port: Port) -> None:
        """See `EventChannels.unbind`."""
        if not self._faults.dead:
            self._events.unbind(port)


class FaultyHost(Host):
    """An interface to the simulated host with faults."""

    def __init__(self, host: SimHost, faults: Faults) -> None:
        self._host = host
        self.name = host.name
        self.grants = FaultyGrants(host.grants, faults)
        self.events = FaultyEvents(host.events, faults)
        self.store = host.store

    def close(self) -> None:
        """See `Host.close`."""
        self._host.close()
