"""Rules T6 to T9: transactions, nodes that are removed and states that are written, on a machine with both ends."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask
from xenbusd import toolstack
from xenbusd.api import Backend, BackendDevice
from xenbusd.bus.state import Seen, State, parse_state
from xenbusd.errors import NodeNotFound
from xenbusd.ids import DOM0
from xenbusd.store.transaction import Transaction
from xenbusd.testing import Machine, Peer
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING


class Held(Backend, device_class="held"):
    """A backend that stops before each switch of its state until the test lets it go on."""

    _go: asyncio.Semaphore
    _reached: asyncio.Queue[State]

    @classmethod
    async def before(cls, state: State) -> None:
        """Wait until it has stopped before a switch to `state`."""
        async with asyncio.timeout(DEADLINE_S):
            assert await cls._reached.get() is state

    @classmethod
    def go(cls) -> None:
        """Let it go on."""
        cls._go.release()

    @classmethod
    async def stop_before(cls, state: State) -> None:
        """Stop (the backend's part)."""
        cls._reached.put_nowait(state)
        await cls._go.acquire()

    async def run(self, dev: BackendDevice) -> None:
        """Go through a connection with stops."""
        await self.stop_before(State.INIT_WAIT)
        await dev.advertise(feature_held=1)
        await self.stop_before(State.CONNECTED)
        async with dev.connect(RING, held=1) as ring:
            await ring.serve(lambda: False)
        await self.stop_before(State.CLOSING)


@pytest.fixture
def held() -> type[Held]:
    """The held backend, for one test's event loop."""

    class HeldHere(Held, device_class="held"):
        _go = asyncio.Semaphore(0)
        _reached = asyncio.Queue()

    return HeldHere


# -- T6 ----------------------------------------------------------------------------------------------------------------


async def test_t06_a_conflict_has_the_whole_body_done_again(machine: Machine) -> None:
    """T6: on EAGAIN everything is done again, reads included, so the outcome rests on what stands there then."""
    other = await machine.start(DOM0)
    path = "/local/domain/0/data/count"
    await machine.store.write(path, "1")
    runs = 0

    async def add_one(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        value = int(await tx.read(path))
        if runs < 3:
            await other.store.write(path, str(value * 10))
        await tx.write(path, str(value + 1))

    await machine.store.transaction(add_one)
    assert (runs, await machine.store.read(path)) == (3, b"101")


async def test_t06_any_other_error_is_final(machine: Machine) -> None:
    """T6: an error that is no conflict aborts the transaction; it is not tried again and nothing of it is written."""
    runs = 0

    async def body(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.write("/local/domain/0/data/half", "1")
        await tx.read("/local/domain/0/data/missing")

    with pytest.raises(NodeNotFound):
        await machine.store.transaction(body)
    assert (runs, await machine.read("/local/domain/0/data/half")) == (1, None)


async def test_t06_watches_fire_at_the_commit(machine: Machine) -> None:
    """T6: nobody hears of a change before the transaction that makes it is committed."""
    path = "/local/domain/0/data/quiet"
    watch = await (await machine.start(DOM0)).store.watch(path)
    await watch.wait()

    async def body(tx: Transaction) -> None:
        await tx.write(path, "1")
        await machine.toolstack.settle()
        assert watch.take() == set()

    await machine.store.transaction(body)
    assert await watch.wait() == {path}


# -- T7, T8 ------------------------------------------------------------------------------------------------------------


async def test_t07_a_removed_directory_is_never_resurrected(machine: Machine) -> None:
    """T7: when a toolstack removes a connected pair without a word, neither end writes a node of it again."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    before = await machine.snapshot()
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    await toolstack.remove(machine.store, id)
    for process in (back, guest, back, guest):
        await process.settle()
    assert back.devices == guest.devices == []
    assert await machine.snapshot() == before


@pytest.mark.parametrize("step", [State.INIT_WAIT, State.CONNECTED, State.CLOSING])
async def test_t07_a_switch_finds_the_directory_removed(machine: Machine, held: type[Held], step: State) -> None:
    """T7: a backend that has read the store and is about to switch its state finds the directory gone, and writes
    nothing.
    """
    back = await machine.start(DOM0, held)
    peer = Peer(await machine.start(GUEST), machine.id("held"))
    before = await machine.snapshot()
    await machine.attach(peer.id)
    await held.before(State.INIT_WAIT)
    with peer.ring(RING) as ring:
        if step is not State.INIT_WAIT:
            held.go()
            await peer.until(State.INIT_WAIT)
            await peer.write(State.INITIALISED, ring_ref=ring.grefs[0], event_channel=ring.port)
            await held.before(State.CONNECTED)
        if step is State.CLOSING:
            held.go()
            await peer.until(State.CONNECTED)
            await peer.write(State.INITIALISING)
            await held.before(State.CLOSING)
        await toolstack.remove(machine.store, peer.id)
        held.go()
        await back.settle()
        assert back.devices == []
    assert await machine.snapshot() == before


async def test_t07_a_removed_device_leaves_no_error_behind(machine: Machine, held: type[Held]) -> None:
    """T7: an error that comes after the directory was removed is logged, and no node is made for it."""

    class Failing(Backend, device_class="held"):
        async def run(self, dev: BackendDevice) -> None:
            await held.stop_before(State.INIT_WAIT)
            raise OSError(errno.EIO, f"the disk of {dev.id} broke")

    back = await machine.start(DOM0, Failing)
    await machine.start(GUEST)
    before = await machine.snapshot()
    id = machine.id("held")
    await machine.attach(id)
    await held.before(State.INIT_WAIT)
    await toolstack.remove(machine.store, id)
    held.go()
    await back.settle()
    assert back.devices == []
    assert await machine.snapshot() == before


async def test_t07_a_toolstack_s_closing_is_not_overwritten(machine: Machine, held: type[Held]) -> None:
    """T7: the state is read in the transaction that writes it: a 5 of the toolstack's is never replaced by a 4."""
    back = await machine.start(DOM0, held)
    peer = Peer(await machine.start(GUEST), machine.id("held"))
    await machine.attach(peer.id)
    await held.before(State.INIT_WAIT)
    held.go()
    await peer.until(State.INIT_WAIT)
    with await peer.offer(RING):
        await held.before(State.CONNECTED)
        await machine.ask_to_close(peer.id)
        held.go()
        await back.settle()
        assert await peer.read("state") == b"5"
        assert await peer.read("held") is None
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
    assert back.states(peer.id, "backend") == ["Initialising", "InitWait", "Closing", "Closed"]


async def test_t08_a_state_that_stands_there_is_not_written_again(echo: Half) -> None:
    """T8: switching to the state that the directory holds already fires no watch."""
    with await echo.connect():
        await echo.back.settle()
        watch = await echo.machine.store.watch(f"{echo.id.backend_path}/state")
        await watch.wait()
        await echo.dev.switch(State.CONNECTED)
        await echo.machine.toolstack.settle()
        assert watch.take() == set()
        await echo.dev.switch(State.CLOSING)
        assert await watch.wait() == {watch.path}


async def test_t08_a_state_written_again_is_a_signal(machine: Machine) -> None:
    """T8: a peer that writes the state which stands there already means something by it; a driver observes it."""
    observed: asyncio.Queue[State] = asyncio.Queue()

    class Observer(Backend, device_class="observer"):
        async def run(self, dev: BackendDevice) -> None:
            def note(seen: Seen) -> None:
                observed.put_nowait(seen.otherend)
                dev.check(seen)

            await dev.advertise()
            async with dev.connect(RING):
                await dev.until(note)

    await machine.start(DOM0, Observer)
    peer = Peer(await machine.start(GUEST), machine.id("observer"))
    await machine.attach(peer.id)
    with await peer.connect(RING):
        async with asyncio.timeout(DEADLINE_S):
            while await observed.get() is not State.CONNECTED:
                pass
            for _ in range(3):
                await peer.write(State.CONNECTED)
                assert await observed.get() is State.CONNECTED
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)


# -- T9 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, b"", b"0", b"9", b"-1", b"04", b" 4", b"4\n", b"4\0", b"\xff", b"four"])
def test_t09_a_state_that_does_not_parse_is_unknown(value: bytes | None) -> None:
    """T9: a value that is no state in decimal counts as an absent one."""
    assert parse_state(value) is State.UNKNOWN


async def test_t09_a_frontend_that_writes_nonsense_is_gone(echo: Half) -> None:
    """T9: a connected frontend whose state becomes invalid is closed like one that vanished; it may come back."""
    ring = await echo.connect()
    await echo.guest.store.write(f"{echo.peer.path}/state", "banana")
    await echo.backend(State.CLOSED)
    assert echo.machine.holdings(GUEST).grants_mapped == 0
    ring.close()
    await echo.peer.write(State.INITIALISING)
    with await echo.connect() as ring:
        assert await ask(ring, b"back") == [b"back"]


async def test_t09_a_device_that_vanishes_while_it_is_read_is_no_error(
    machine: Machine, logged: list[dict[str, Any]]
) -> None:
    """T9: directories that come and go faster than a daemon observes them cause no error line and leave nothing."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    before = await machine.snapshot()
    for devid in range(20):
        id = machine.id("echo", devid=devid)
        await machine.attach(id)
        for _ in range(devid):
            await asyncio.sleep(0)
        await toolstack.remove(machine.store, id)
    for process in (back, guest, back, guest):
        await process.settle()
    assert back.devices == guest.devices == []
    assert await machine.snapshot() == before
    assert [line for line in logged if line["log_level"] in ("warning", "error")] == []


async def test_t09_removing_what_is_not_there(machine: Machine) -> None:
    """T9: RM of a missing node succeeds if its parent is there, and is ENOENT if not."""
    await machine.store.rm("/local/domain/0/backend/none")
    with pytest.raises(NodeNotFound):
        await machine.store.rm("/local/domain/0/none/none")
