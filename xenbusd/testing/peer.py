"""One end of a device, driven by a test: for any order of events, honest or not."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from xenbusd.bus.nodes import Value, keys
from xenbusd.bus.offers import offer_keys, one_ring
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State, parse_state
from xenbusd.errors import AccessDenied, NodeNotFound
from xenbusd.ids import Domid
from xenbusd.ring.layout import HEADER_BYTES, RingFormat
from xenbusd.ring.shared import FrontRing
from xenbusd.store.transaction import Transaction
from xenbusd.testing.machine import DEADLINE_S, Process


class Peer:
    """An end that does nothing by itself: the test drives it.

    Args:
        process: it acts in the domain, and with the rights, of this process.
        id: which device.
        side: which end the test drives.
    """

    def __init__(self, process: Process, id: DeviceId, side: Side = Side.FRONTEND) -> None:
        self.process = process
        self.store = process.store
        self.id = id
        self.side = side
        self.path = id.path(side)
        self.otherend_path = id.path(side.opposite)
        self.otherend_domid: Domid = id.backend_domid if side is Side.FRONTEND else id.frontend_domid

    async def write(self, state: State | int | None = None, /, **values: Value) -> None:
        """Write keys of its directory, and then its state, in one transaction; event_channel is `event-channel`."""
        nodes: dict[str, bytes] = keys(values)
        if state is not None:
            nodes["state"] = b"%d" % state

        async def body(tx: Transaction) -> None:
            await asyncio.gather(*(tx.write(f"{self.path}/{key}", value) for key, value in nodes.items()))

        await self.store.transaction(body)

    async def read(self, key: str) -> bytes | None:
        """Read a key of the other end's directory; None if it is not there."""
        try:
            return await self.store.read(f"{self.otherend_path}/{key}")
        except (NodeNotFound, AccessDenied):
            return None

    async def until(self, *states: State) -> State:
        """Wait until the other end is at one of `states`, and return that state. UNKNOWN: it has no `state`.

        Raises:
            AssertionError: it does not get there within the deadline; the message has its state.
        """
        state = State.UNKNOWN
        watch = await self.store.watch(f"{self.otherend_path}/state")
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    await watch.wait()
                    state = parse_state(await self.read("state"))
                    if state in states:
                        return state
        except TimeoutError:
            wanted = " or ".join(wanted.title for wanted in states)
            raise AssertionError(
                f"{self.id}: the {self.side.opposite.value} is at {state.title}, not {wanted}"
            ) from None
        finally:
            await watch.unwatch()

    def ring(self, format: RingFormat[Any, Any], *, order: int = 0) -> HandRing:
        """Share a fresh ring of 1 << `order` pages with the other end, and open a port to it."""
        return HandRing(self.process, self.otherend_domid, format, order)

    async def offer(
        self,
        format: RingFormat[Any, Any],
        *,
        order: int | None = None,
        state: State = State.INITIALISED,
        **values: Value,
    ) -> HandRing:
        """Publish a fresh ring, as an honest frontend does, and switch to `state`.

        Args:
            order: None: one page, spelled `ring-ref`; else `ring-page-order` and `ring-ref0`, ... (T28).
            values: more keys; they replace those of the ring.
        """
        ring = self.ring(format, order=order or 0)
        offered = offer_keys((format,), order, (), one_ring(ring.grefs, ring.port))
        await self.write(state, **{**offered, **keys(values)})
        return ring

    async def connect(self, format: RingFormat[Any, Any], *, order: int | None = None, **values: Value) -> HandRing:
        """Go through a frontend's whole handshake: wait for InitWait, `offer`, wait for Connected, be Connected."""
        await self.until(State.INIT_WAIT)
        ring = await self.offer(format, order=order, state=State.INITIALISED, **values)
        await self.until(State.CONNECTED)
        await self.write(State.CONNECTED)
        return ring


class HandRing:
    """A ring that a hand-driven frontend shares. Made by `Peer.ring`; `close` it, or use it as `with`.

    `words` are the four shared indices (see xenbusd.ring.layout); a test may write anything into them.
    """

    def __init__(self, process: Process, domid: Domid, format: RingFormat[Any, Any], order: int) -> None:
        host = process.host
        self._process = process
        self._format = format
        self._share = host.grants.share(domid, 1 << order)
        self.grefs = self._share.grefs
        self.port = host.events.alloc_unbound(domid)
        self.end = FrontRing(self._share.view, format.slot_bytes)
        self.words = self._share.view[:HEADER_BYTES].cast("I")
        self.events = 0
        """Notifications received."""
        self._rang = asyncio.Event()
        self._open = True
        process.services.ports.attach(self.port, self._ring)

    def _ring(self) -> None:
        self.events += 1
        self._rang.set()
        self._process.host.events.unmask(self.port)

    def send(self, *slots: bytes) -> None:
        """Put requests into the ring and publish them together. The ring must have room for them."""
        for slot in slots:
            assert self.end.free, "the ring is full: take responses first"
            self.end.put(slot)
        if self.end.publish():
            self.notify()

    def notify(self) -> None:
        """Notify the other end, even if it did not ask for that."""
        self._process.host.events.notify(self.port)

    async def take(self, count: int) -> list[bytes]:
        """Wait for exactly `count` responses, each a slot's bytes.

        Raises:
            AssertionError: fewer of them arrive within the deadline, or more.
        """
        slots: list[bytes] = []
        stride = self._format.slot_bytes
        try:
            async with asyncio.timeout(DEADLINE_S):
                while len(slots) < count:
                    run, more = self.end.take()
                    slots += [run[start : start + stride] for start in range(0, more * stride, stride)]
                    if not more and self.end.rest():
                        await self._rang.wait()
                        self._rang.clear()
        except TimeoutError:
            raise AssertionError(f"{len(slots)} responses of {count} have come") from None
        assert len(slots) == count, "more responses than were waited for"
        return slots

    async def ask(self, *slots: bytes) -> list[bytes]:
        """Send requests and wait for as many responses."""
        self.send(*slots)
        return await self.take(len(slots))

    def close(self) -> None:
        """Close the port and take the grant back. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._process.services.ports.detach(self.port)
        self._process.host.events.unbind(self.port)
        self.words.release()
        self.end.release()
        self._share.unshare()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
