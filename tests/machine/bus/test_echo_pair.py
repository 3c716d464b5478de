"""The template pair on a simulated machine: it works, it ends in order from either side, it survives hostile peers, and
nothing of it is left, while another domain's device never notices."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask, say
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, Domid, Gref, Port
from xenbusd.ring.layout import REQ_PROD, RSP_PROD
from xenbusd.ring.shared import BackRing
from xenbusd.testing import HandRing, Machine, Peer, Process
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING, SLOT, Line

ONCE = ["InitWait", "Connected", "Closing", "Closed"]
"""What a backend goes through in one connection."""

OUR_BUGS = {"driver.crashed", "device.lost"}
"""Log events that no peer may cause."""


@asynccontextmanager
async def pair(machine: Machine) -> AsyncIterator[tuple[Process, Process, DeviceId]]:
    """Connect a pair; in the end, detach it and see that nothing is left of it."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    before, files = await machine.snapshot(), set(os.listdir(guest.services.run_dir))
    await machine.attach(id)
    await machine.connected(id)
    yield back, guest, id
    await machine.detach(id)
    for process in machine.processes:
        if process.alive:
            await process.settle()
            assert process.devices == []
    assert await machine.snapshot() == before
    assert set(os.listdir(guest.services.run_dir)) == files


# -- the honest pair ---------------------------------------------------------------------------------------------------


async def test_the_happy_path(machine: Machine) -> None:
    """Attach, send lines, detach: each end goes through the states of the 2006 paper, and nothing is left."""
    async with pair(machine) as (back, guest, id):
        assert await say(guest, id, b"one", b"two", b"") == [b"ONE", b"TWO", b""]
    assert back.states(id, "backend") == ["Initialising", *ONCE]
    assert guest.states(id, "frontend") == ["Initialising", "Initialised", "Connected", "Closing", "Closed"]


async def test_many_programs_at_once(machine: Machine) -> None:
    """More programs than the ring has slots send lines at once, and each gets its own answers, in order."""
    async with pair(machine) as (_, guest, id):
        programs = [[b"program %d line %d" % (program, line) for line in range(5)] for program in range(70)]
        answers = await asyncio.gather(*(say(guest, id, *lines) for lines in programs))
        assert answers == [[line.upper() for line in lines] for lines in programs]


async def test_an_attached_device_cannot_be_attached_again(machine: Machine) -> None:
    """A second attach is refused, and harms neither the pair nor the store."""
    async with pair(machine) as (_, guest, id):
        nodes = await machine.nodes(id.backend_path)
        with pytest.raises(UsageError, match="there is a device echo/5/0 already"):
            await machine.attach(id)
        assert await machine.nodes(id.backend_path) == nodes
        assert await say(guest, id, b"fine") == [b"FINE"]


async def test_several_devices_of_one_domain(machine: Machine) -> None:
    """Ten devices of one class connect at once and are told apart."""
    async with pair(machine) as (_, guest, first):
        ids = [machine.id("echo", devid=devid) for devid in range(1, 11)]
        for id in ids:
            await machine.attach(id)
        await asyncio.gather(*map(machine.connected, ids))
        answers = await asyncio.gather(*(say(guest, id, b"device %d" % id.devid) for id in ids))
        assert answers == [[b"DEVICE %d" % id.devid] for id in ids]
        await asyncio.gather(*map(machine.detach, ids))
        assert await say(guest, first, b"and the first") == [b"AND THE FIRST"]


async def test_the_frontend_s_process_ends_and_another_takes_over(machine: Machine) -> None:
    """An agent that is stopped closes in order; the device stays, for `online` is 1, and the next agent connects."""
    async with pair(machine) as (back, guest, id):
        keeper = await machine.start(GUEST)  # the domain lives on
        await guest.stop()
        await machine.until(id, backend=State.CLOSED, frontend=State.CLOSED)
        second = await machine.start(GUEST, EchoFrontend)
        await machine.connected(id)
        assert await say(second, id, b"second") == [b"SECOND"]
        await keeper.stop()
    assert back.states(id, "backend") == ["Initialising", *ONCE, *ONCE]


async def test_the_backend_s_process_ends_and_another_takes_over(machine: Machine) -> None:
    """A backend daemon that is stopped leaves its pairs connected; lines sent meanwhile are answered by the next one,
    and the frontend never sees a state change."""
    async with pair(machine) as (back, guest, id):
        assert await say(guest, id, b"first") == [b"FIRST"]
        await back.stop()
        meanwhile = asyncio.create_task(say(guest, id, b"mean", b"while"))
        await guest.settle()
        await machine.start(DOM0, EchoBackend)
        assert await meanwhile == [b"MEAN", b"WHILE"]
        assert guest.states(id, "backend")[-1] == "Connected"
        assert guest.states(id, "frontend") == ["Initialising", "Initialised", "Connected"]


async def test_many_pairs_are_handed_over_at_once(machine: Machine) -> None:
    """A backend daemon that is stopped begins nothing new on its way out: each of its pairs is the next one's to go on
    with, and a frontend daemon's pairs stay Closed."""
    back = await machine.start(DOM0, EchoBackend)
    keeper = await machine.start(GUEST)  # the domain lives on
    guest = await machine.start(GUEST, EchoFrontend)
    ids = [machine.id("echo", devid=devid) for devid in range(24)]
    for id in ids:
        await machine.attach(id)
    await asyncio.gather(*map(machine.connected, ids))
    await back.stop()
    successor = await machine.start(DOM0, EchoBackend)
    answers = await asyncio.gather(*(say(guest, id, b"next") for id in ids))
    assert answers == [[b"NEXT"]] * len(ids)
    assert [successor.states(id, "backend") for id in ids] == [["Connected"]] * len(ids)
    await guest.stop()
    assert await asyncio.gather(*(machine.read(f"{id.frontend_path}/state") for id in ids)) == [b"6"] * len(ids)
    assert machine.holdings(GUEST) == (GUEST, 1, 0, 0, 0, 0)
    assert keeper.alive


async def test_nothing_begins_in_a_daemon_that_stops(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """A device that appears while the daemon stops is left for the next one, untouched."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    first, late = machine.id("echo"), machine.id("echo", devid=1)
    await machine.attach(first)
    await machine.connected(first)
    for scan in back.runtime.scans:
        await scan.supervisor.stop()
    await machine.attach(late)
    await back.settle()
    assert await machine.read(f"{late.backend_path}/state") == b"1"
    await back.stop()
    assert [line for line in logged if line["event"] in OUR_BUGS] == []
    await machine.start(DOM0, EchoBackend)
    await machine.connected(late)
    assert await say(guest, first, b"first") == [b"FIRST"]
    assert await say(guest, late, b"late") == [b"LATE"]


async def test_the_backend_s_process_is_killed_and_another_takes_over(machine: Machine) -> None:
    """A backend daemon that is killed leaves rings that cannot be trusted: the next one has the pair begin again."""
    async with pair(machine) as (back, guest, id):
        assert await say(guest, id, b"first") == [b"FIRST"]
        await back.kill()
        await machine.start(DOM0, EchoBackend)
        await guest.until(lambda: guest.states(id, "frontend").count("Connected") == 2)
        assert await say(guest, id, b"second") == [b"SECOND"]


async def test_a_device_that_goes_while_no_backend_runs_leaves_nothing(machine: Machine) -> None:
    """The toolstack removes a device after its backend daemon was killed: the next one removes the ring's journal."""
    back = await machine.start(DOM0, EchoBackend)
    await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    run_dir = Path(back.services.run_dir)
    journal = run_dir / f"{id.log_name}.ring"
    assert journal.exists()
    await back.kill()
    others = [run_dir / "echo-99-0.ring", run_dir / "other-99-0.ring", run_dir / "echo-98-0.ring.txt"]
    for path in others:
        path.touch()
    await machine.store.rm(id.backend_path)
    successor = await machine.start(DOM0, EchoBackend)
    await successor.settle()
    assert [path.name for path in [journal, *others] if path.exists()] == [path.name for path in others[1:]]


async def test_a_program_that_waits_is_told_when_the_device_goes(machine: Machine) -> None:
    """A line in the ring when the backend goes for good ends with its connection; the program is not left hanging."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    await back.kill()
    waiting = asyncio.create_task(say(guest, id, b"anybody?"))
    await guest.settle()
    await machine.store.rm(id.backend_path)
    assert await waiting == [b""]
    await machine.until(id, frontend=State.CLOSED)


# -- the frontend dies -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def beside_an_honest_pair(machine: Machine, logged: list[dict[str, Any]]) -> AsyncIterator[Half]:
    """Give a test a domain 5 to do its worst in, while domain 6 has an honest pair with the same backend process.

    In the end domain 5 is destroyed and its device detached by force; nothing of either is left, the honest pair works,
    its backend never moved, and nothing was logged that would be a bug of ours.
    """
    back = await machine.start(DOM0, EchoBackend)
    honest = await machine.start(Domid(6), EchoFrontend)
    other = machine.id("echo", 6)
    await machine.attach(other)
    await machine.connected(other)
    before = await machine.snapshot()
    guest = await machine.start(GUEST)
    id = machine.id("echo")
    await machine.attach(id)
    half = Half(machine, id, back, guest, Peer(guest, id))
    yield half
    assert await say(honest, other, b"undisturbed") == [b"UNDISTURBED"]
    await machine.kill(GUEST)
    await machine.until(id, backend=State.CLOSED)
    with suppress(UsageError):
        await machine.detach(id, force=True)
    await back.settle()
    assert [dev.id for dev in back.devices] == [other]
    assert await machine.snapshot() == before
    assert await say(honest, other, b"still undisturbed") == [b"STILL UNDISTURBED"]
    assert back.states(other, "backend") == ["Initialising", "InitWait", "Connected"]
    assert [line for line in logged if line["event"] in OUR_BUGS] == []
    await machine.detach(other)


async def at_initialising(echo: Half) -> None:
    """The backend waits for an offer."""
    await echo.backend(State.INIT_WAIT)


async def at_offered(echo: Half) -> None:
    """The ring is offered; the backend is just taking it."""
    await echo.backend(State.INIT_WAIT)
    await echo.peer.offer(RING)


async def at_accepted(echo: Half) -> None:
    """The backend is Connected, the frontend not yet."""
    await at_offered(echo)
    await echo.backend(State.CONNECTED)


async def at_connected(echo: Half) -> None:
    """Connected and idle."""
    await echo.connect()
    await echo.back.settle()


async def at_busy(echo: Half) -> None:
    """Connected, with a ring full of requests whose answers nobody will take."""
    ring = await echo.connect()
    ring.send(*(Line(n, b"never read").pack() for n in range(32)))


async def at_closing(echo: Half) -> None:
    """The frontend closes; the backend has followed."""
    await at_connected(echo)
    await echo.peer.write(State.CLOSING)
    await echo.backend(State.CLOSING)


async def at_asked_to_close(echo: Half) -> None:
    """The toolstack closes; the backend waits for the frontend."""
    await at_connected(echo)
    await echo.machine.ask_to_close(echo.id)
    await echo.backend(State.CLOSING)
    await echo.back.settle()


async def at_closed(echo: Half) -> None:
    """Both have closed."""
    await at_closing(echo)
    await echo.peer.write(State.CLOSED)
    await echo.backend(State.CLOSED)


async def at_beginning_again(echo: Half) -> None:
    """Closed once, and on the way to the second connection."""
    await at_closed(echo)
    await echo.peer.write(State.INITIALISING)


STAGES = [
    at_initialising,
    at_offered,
    at_accepted,
    at_connected,
    at_busy,
    at_closing,
    at_asked_to_close,
    at_closed,
    at_beginning_again,
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
async def test_the_frontend_dies(
    machine: Machine, logged: list[dict[str, Any]], stage: Callable[[Half], Awaitable[None]]
) -> None:
    """Whatever a pair is at when its frontend's domain is destroyed, the backend lets go of all that was of it."""
    async with beside_an_honest_pair(machine, logged) as echo:
        await stage(echo)
        await echo.guest.kill()
        await machine.until(echo.id, backend=State.CLOSED, frontend=State.UNKNOWN)
        assert machine.holdings(GUEST) == (GUEST, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
async def test_the_device_is_torn_away(
    machine: Machine, logged: list[dict[str, Any]], stage: Callable[[Half], Awaitable[None]]
) -> None:
    """Whatever a pair is at, a forced detach takes it away at once, and the domain can be given a new one."""
    async with beside_an_honest_pair(machine, logged) as echo:
        await stage(echo)
        await machine.detach(echo.id, force=True)
        assert machine.holdings(GUEST).grants_mapped == 0
        await machine.attach(echo.id)
        with await echo.connect() as ring:
            assert await ask(ring, b"a new one") == [b"a new one"]


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
    """An offer whose ring is full of lies before the backend has ever looked at it."""
    await echo.backend(State.INIT_WAIT)
    ring = stack.enter_context(echo.peer.ring(RING))
    for word in range(4):
        ring.words[word] = 0xFFFF_FF00
    await echo.peer.write(State.CONNECTED, ring_ref=ring.grefs[0], event_channel=ring.port)


FATAL: list[tuple[Attack, bytes]] = [
    (far_req_prod, b"22 the frontend's req_prod 4000000 "),
    (backward_req_prod, b"22 the frontend's req_prod 0 "),
    (one_too_many, b"22 the frontend's req_prod 34 "),
    (bad_slot, b"22 a request that cannot be: a line of 61 bytes in a slot for 60"),
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
    """Two hundred states in a mad order, among them some that are none, cost nobody anything."""
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
    """Twenty connections in a row leave as much behind as one does: nothing."""
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
        assert machine.holdings(GUEST).grants_mapped == 1  # a page lives until the last who maps it lets go
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
    ("slot", lambda ring: ring.answer(SLOT.pack(31, 200, b"")), b"22 a response that cannot be: a line of 200 bytes"),
]


@pytest.mark.parametrize(("lie", "complaint"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
async def test_a_hostile_backend_closes_its_own_device(
    machine: Machine, logged: list[dict[str, Any]], lie: Callable[[HandBackend], None], complaint: bytes
) -> None:
    """A frontend distrusts its backend likewise: what cannot be ends the connection, and the program is told."""
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
    """A frontend lives through a mad backend, and connects to the next one."""
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
