"""An echo end whose other end lies: the device closes, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask, say
from tests.doubles.echo_pair import OUR_BUGS, beside_an_honest_pair
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.ids import DOM0, Domid, Gref, Port
from xenbusd.ring.layout import REQ_PROD, RSP_PROD
from xenbusd.ring.shared import BackRing
from xenbusd.testing import HandRing, Machine, Peer, Process
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING, SLOT, Line

# -- a hostile frontend ------------------------------------------------------------------------------------------------


Attack = Callable[[Half, ExitStack], Awaitable[None]]


def connected(attack: Callable[[Half, HandRing], Awaitable[None] | None]) -> Attack:
    """An attack on a connected ring."""

    async def run(echo: Half, stack: ExitStack) -> None:
        ring = stack.enter_context(await echo.connect())
        assert await ask(ring, b"honest at first") == [b"honest at first"]
        pending = attack(echo, ring)
        if pending is not None:
            await pending

    return run


def offering(**keys: Any) -> Attack:
    """An attack by an offer in which some keys are lies."""

    async def run(echo: Half, stack: ExitStack) -> None:
        await echo.backend(State.INIT_WAIT)
        stack.enter_context(await echo.peer.offer(RING, **keys))

    return run


@connected
def far_req_prod(echo: Half, ring: HandRing) -> None:
    """More requests than the ring has slots."""
    del echo
    ring.words[REQ_PROD] = 4_000_000
    ring.notify()


@connected
def backward_req_prod(echo: Half, ring: HandRing) -> None:
    """A producer index that goes back."""
    del echo
    ring.words[REQ_PROD] = 0
    ring.notify()


@connected
def one_too_many(echo: Half, ring: HandRing) -> None:
    """One request more than there are slots."""
    del echo
    ring.words[REQ_PROD] = ring.words[REQ_PROD] + 33
    ring.notify()


@connected
def bad_slot(echo: Half, ring: HandRing) -> None:
    """A line that is longer than its slot."""
    del echo
    ring.send(SLOT.pack(1, 61, b""))


async def foreign_ring(echo: Half, stack: ExitStack) -> None:
    """A ring that was granted to somebody else."""
    share = echo.guest.host.grants.share(Domid(6), 1)
    stack.callback(share.unshare)
    await offering(ring_ref=share.grefs[0])(echo, stack)


async def read_only_ring(echo: Half, stack: ExitStack) -> None:
    """A ring that the backend may not write to."""
    share = echo.guest.host.grants.share(DOM0, 1, writable=False)
    stack.callback(share.unshare)
    await offering(ring_ref=share.grefs[0])(echo, stack)


async def foreign_port(echo: Half, stack: ExitStack) -> None:
    """An event channel that was opened for somebody else."""
    port = echo.guest.host.events.alloc_unbound(Domid(6))
    stack.callback(echo.guest.host.events.unbind, port)
    await offering(event_channel=port)(echo, stack)


async def ring_that_says_much(echo: Half, stack: ExitStack) -> None:
    """An offer whose ring is full of lies before the backend has ever read it."""
    await echo.backend(State.INIT_WAIT)
    ring = stack.enter_context(echo.peer.ring(RING))
    for word in range(4):
        ring.words[word] = 0xFFFF_FF00
    await echo.peer.write(State.CONNECTED, ring_ref=ring.grefs[0], event_channel=ring.port)


FATAL: list[tuple[Attack, bytes]] = [
    (far_req_prod, b"22 the frontend's req_prod 4000000 "),
    (backward_req_prod, b"22 the frontend's req_prod 0 "),
    (one_too_many, b"22 the frontend's req_prod 34 "),
    (bad_slot, b"22 an impossible request: a line of 61 bytes in a slot for 60"),
    (ring_that_says_much, b"22 the frontend's req_prod 4294967040 "),
    (foreign_ring, b" xengnttab_map_domain_grant_refs("),
    (read_only_ring, b" xengnttab_map_domain_grant_refs("),
    (offering(ring_ref=4_000_000), b" xengnttab_map_domain_grant_refs(domain 5, references 4000000"),
    (offering(ring_ref=0), b" xengnttab_map_domain_grant_refs(domain 5, references 0"),
    (offering(ring_ref="8 "), b"22 /local/domain/5/device/echo/0/ring-ref holds '8 '"),
    (offering(ring_ref="9" * 1500), b"22 /local/domain/5/device/echo/0/ring-ref holds '999"),
    (foreign_port, b" xenevtchn_bind_interdomain(domain 5, port "),
    (offering(event_channel=4_000_000), b" xenevtchn_bind_interdomain(domain 5, port 4000000"),
    (offering(event_channel=0), b" xenevtchn_bind_interdomain(domain 5, port 0"),
    (offering(request_upper="perhaps"), b"22 /local/domain/5/device/echo/0/request-upper holds 'perhaps'"),
]


@pytest.mark.parametrize(
    ("attack", "complaint"), FATAL, ids=lambda value: value.decode()[:40] if isinstance(value, bytes) else ""
)
async def test_a_hostile_frontend_closes_its_own_device(
    machine: Machine, logged: list[dict[str, Any]], attack: Attack, complaint: bytes
) -> None:
    """A frontend that lies has its device closed, with an error that says what was wrong; it may come back honest."""
    async with beside_an_honest_pair(machine, logged) as echo:
        with ExitStack() as stack:
            await attack(echo, stack)
            await echo.backend(State.CLOSING)
            assert complaint in (await machine.read(echo.id.error_path(Side.BACKEND)) or b"nothing")
            assert machine.holdings(GUEST).grants_mapped == 0
            await echo.peer.write(State.CLOSED)
            await echo.backend(State.CLOSED)
        for key in await echo.guest.store.directory(echo.peer.path):
            if key not in ("backend", "backend-id", "state"):
                await echo.guest.store.rm(f"{echo.peer.path}/{key}")
        await echo.peer.write(State.INITIALISING)
        with await echo.connect() as ring:
            assert await ask(ring, b"honest now") == [b"honest now"]


async def test_a_frontend_that_toggles_its_state(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """Two hundred states in no sensible order, some of them invalid, disturb nobody."""
    async with beside_an_honest_pair(machine, logged) as echo:
        with echo.peer.ring(RING) as ring:
            await echo.peer.write(None, ring_ref=ring.grefs[0], event_channel=ring.port)
            for step in range(200):
                await echo.guest.store.write(f"{echo.peer.path}/state", b"%d" % (step * 7 % 11))
            await echo.back.settle()
            await echo.peer.write(State.CLOSED)
            await echo.backend(State.CLOSED)
        await echo.peer.write(State.INITIALISING)
        with await echo.connect() as ring:
            assert await ask(ring, b"tired") == [b"tired"]


async def test_a_frontend_that_closes_and_reopens(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """Twenty connections in a row leave nothing behind."""
    async with beside_an_honest_pair(machine, logged) as echo:
        for round in range(20):
            with await echo.connect() as ring:
                assert await ask(ring, b"%d" % round) == [b"%d" % round]
                await echo.peer.write(State.CLOSED)
                await echo.backend(State.CLOSED)
            assert machine.holdings(GUEST) == (GUEST, 1, 0, 0, 0, 0)
            await echo.peer.write(State.INITIALISING)


async def test_a_storm_of_events(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """Notifications without requests, and watch events without news, neither harm nor starve anybody."""
    async with beside_an_honest_pair(machine, logged) as echo:
        with await echo.connect() as ring:
            for _ in range(10):
                for _ in range(300):
                    ring.notify()
                storm = [echo.guest.store.write(f"{echo.peer.path}/state", "4") for _ in range(100)]
                storm += [echo.guest.store.write(f"{echo.peer.path}/junk/{n}", "x" * 100) for n in range(50)]
                assert await ask(ring, b"through the storm") == [b"through the storm"]
                await asyncio.gather(*storm)


async def test_a_frontend_that_takes_its_directory_away(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """A guest that removes and makes anew its own nodes is treated as one that left and came."""
    async with beside_an_honest_pair(machine, logged) as echo:
        with await echo.connect():
            await echo.guest.store.rm(f"{echo.peer.path}/state")
            await echo.backend(State.CLOSED)
            assert machine.holdings(GUEST).grants_mapped == 0
        await echo.peer.write(State.INITIALISING)
        with await echo.connect() as ring:
            assert await ask(ring, b"back") == [b"back"]


async def test_a_frontend_that_takes_its_ring_away(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """A guest that takes back its pages and closes its port while connected gets no answers, and harms nobody."""
    async with beside_an_honest_pair(machine, logged) as echo:
        ring = await echo.connect()
        ring.send(Line(1, b"no time").pack())
        ring.close()
        await echo.back.settle()
        assert await echo.peer.read("state") == b"4"
        assert machine.holdings(GUEST).grants_mapped == 1  # a page lives until its last mapping is gone
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
        assert machine.holdings(GUEST).grants_mapped == 0


# -- a hostile backend -------------------------------------------------------------------------------------------------


class HandBackend:
    """A backend driven by hand, connected to a real echo frontend."""

    def __init__(self, process: Process, id: DeviceId, grefs: list[Gref], port: Port) -> None:
        self._events = process.host.events
        self._mapping = process.host.grants.map(id.frontend_domid, grefs)
        self.end = BackRing(self._mapping.view, RING.slot_bytes)
        self.words = self._mapping.view[:64].cast("I")
        self.port = self._events.bind_interdomain(id.frontend_domid, port)

    def notify(self) -> None:
        """Wake the frontend."""
        self._events.notify(self.port)

    def answer(self, slot: bytes) -> None:
        """Put a response and publish it."""
        self.end.put(slot)
        self.end.publish()
        self.notify()

    def close(self) -> None:
        """Let go of everything."""
        self._events.unbind(self.port)
        self.words.release()
        self.end.release()
        self._mapping.unmap()


async def hand_backend(machine: Machine, **keys: Any) -> tuple[Process, Peer]:
    """Start a guest with a real echo frontend, and a backend at InitWait that does only what the test says."""
    id = machine.id("echo")
    peer = Peer(await machine.start(DOM0), id, Side.BACKEND)
    guest = await machine.start(GUEST, EchoFrontend)
    await machine.attach(id)
    await peer.write(State.INIT_WAIT, **keys)
    return guest, peer


LIES: list[tuple[str, Callable[[HandBackend], None], bytes]] = [
    ("rsp_prod", lambda ring: ring.words.__setitem__(RSP_PROD, 7), b"22 the backend's rsp_prod 7 "),
    ("far", lambda ring: ring.words.__setitem__(RSP_PROD, 4_000_000), b"22 the backend's rsp_prod 4000000 "),
    ("id", lambda ring: ring.answer(Line(9, b"whose?").pack()), b"22 a response to request 9, which was not made"),
    ("slot", lambda ring: ring.answer(SLOT.pack(31, 200, b"")), b"22 an impossible response: a line of 200 bytes"),
]


@pytest.mark.parametrize(("lie", "complaint"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
async def test_a_hostile_backend_closes_its_own_device(
    machine: Machine, logged: list[dict[str, Any]], lie: Callable[[HandBackend], None], complaint: bytes
) -> None:
    """A frontend distrusts its backend likewise: an impossible value ends the connection, and the program gets an
    error.
    """
    guest, peer = await hand_backend(machine)
    await peer.until(State.INITIALISED)
    grefs = [Gref(int(await peer.read("ring-ref") or b""))]
    ring = HandBackend(peer.process, peer.id, grefs, Port(int(await peer.read("event-channel") or b"")))
    await peer.write(State.CONNECTED)
    await peer.until(State.CONNECTED)
    program = asyncio.create_task(say(guest, peer.id, b"a line"))
    await guest.until(lambda: ring.words[REQ_PROD] == 1)
    lie(ring)
    ring.notify()
    await peer.until(State.CLOSING)
    assert await program == [b""]
    error = await machine.read(peer.id.error_path(Side.FRONTEND)) or b"nothing"
    assert error.startswith(complaint)
    ring.close()
    assert machine.holdings(GUEST).grants_shared == 0
    assert [line for line in logged if line["event"] in OUR_BUGS] == []


async def test_a_backend_that_toggles_its_state(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """A frontend survives a backend that writes states in no sensible order, and connects to the next one."""
    guest, peer = await hand_backend(machine)
    for step in range(200):
        await peer.store.write(f"{peer.path}/state", b"%d" % (step * 7 % 11))
    await guest.settle()
    await machine.write(peer.path, state="6", online="0")
    # Closed, or about to begin again where its pause had just ended
    await machine.until(peer.id, frontend=(State.CLOSED, State.INITIALISING))
    await machine.detach(peer.id)
    await guest.settle()
    assert guest.devices == []
    assert machine.holdings(GUEST) == (GUEST, 1, 0, 0, 0, 0)
    await machine.start(DOM0, EchoBackend)
    await machine.attach(peer.id)
    await machine.connected(peer.id)
    assert await say(guest, peer.id, b"sane") == [b"SANE"]
    assert [line for line in logged if line["event"] in OUR_BUGS] == []
