"""The field survey's rules on the store and its watches, T1 to T14, on a machine with both ends."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask, half, say
from xenbusd import toolstack
from xenbusd.api import Backend, BackendDevice
from xenbusd.bus.paths import backend_root, frontend_root
from xenbusd.bus.state import Seen, Side, State, parse_state
from xenbusd.errors import AccessDenied, NodeExists, NodeNotFound, QuotaExceeded, StoreError
from xenbusd.ids import DOM0, Domid
from xenbusd.store.client import StoreClient
from xenbusd.store.transaction import Transaction
from xenbusd.store.watch import HINTS_MAX, Watch
from xenbusd.store.wire import ABSOLUTE_PATH_MAX, PAYLOAD_MAX, InvalidPath, InvalidPayload, Op
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


# -- T1 ----------------------------------------------------------------------------------------------------------------


async def test_t01_a_watch_s_first_event_means_scan_now(machine: Machine) -> None:
    """T1: a watch fires once as it is registered, with its own path, whether anything stands there or not."""
    path = backend_root(DOM0, machine.id("echo").device_class)
    watch = await machine.store.watch(path)
    assert await watch.wait() == {path}
    await machine.toolstack.settle()
    assert watch.take() == set()


async def test_t01_what_was_there_before_the_first_event_is_found_by_it(machine: Machine) -> None:
    """T1: a device made before its drivers watch is found by that first event, for no other will come."""
    id = machine.id("echo")
    await machine.start(GUEST)
    await machine.attach(id)
    await machine.start(DOM0, EchoBackend)
    await machine.until(id, backend=State.INIT_WAIT)
    await machine.start(GUEST, EchoFrontend)
    await machine.connected(id)


# -- T2 ----------------------------------------------------------------------------------------------------------------


async def test_t02_jumps_of_the_other_end_s_state_are_normal(echo: Half) -> None:
    """T2: events coalesce, so the backend copes with a frontend that goes 1 to 4, 4 to 6 and 6 to 1."""
    for _ in range(2):
        await echo.backend(State.INIT_WAIT)
        with await echo.peer.offer(RING, state=State.CONNECTED) as ring:
            await echo.backend(State.CONNECTED)
            assert await ask(ring, b"a line") == [b"a line"]
            await echo.peer.write(State.CLOSED)
            await echo.backend(State.CLOSED)
        await echo.peer.write(State.INITIALISING)
    await echo.backend(State.INIT_WAIT)


async def test_t02_states_that_were_never_seen_are_not_missed(echo: Half) -> None:
    """T2: a frontend that writes its whole life in one go is met at where it stands when the backend looks."""
    await echo.backend(State.INIT_WAIT)
    path = f"{echo.peer.path}/state"
    await asyncio.gather(*(echo.guest.store.write(path, b"%d" % state) for state in (3, 4, 5, 6)))
    await echo.backend(State.CLOSED)
    await asyncio.gather(*(echo.guest.store.write(path, b"%d" % state) for state in (1, 3, 6, 1)))
    await echo.backend(State.INIT_WAIT)
    with await echo.connect() as ring:
        assert await ask(ring, b"again") == [b"again"]


async def test_t02_an_event_is_a_reason_to_read_not_the_news(echo: Half) -> None:
    """T2: an event that says nothing new costs a look and changes nothing."""
    with await echo.connect() as ring:
        before = echo.backend_states()
        for _ in range(20):
            await echo.peer.write(State.CONNECTED)
            await echo.guest.store.write(f"{echo.peer.path}/state/below", "x")
        await echo.back.settle()
        assert echo.backend_states() == before
        assert await ask(ring, b"still here") == [b"still here"]


# -- T3, T4 ------------------------------------------------------------------------------------------------------------


async def test_t03_tokens_are_unique(machine: Machine) -> None:
    """T3: the same path with the same token twice is EEXIST, so each of our watches has a token of its own."""
    path = "/local/domain/0/backend"
    payload = f"{path}\0mine\0".encode()
    await machine.store.ask(Op.WATCH, path, payload)
    with pytest.raises(NodeExists) as caught:
        await machine.store.ask(Op.WATCH, path, payload)
    assert caught.value.errno == errno.EEXIST
    watches = [await machine.store.watch(path) for _ in range(40)]
    assert len({watch.token for watch in watches}) == 40
    for watch in watches:
        assert await watch.wait() == {path}


async def test_t04_only_absolute_paths_are_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """T4: a relative path would come back relative, and mean another place in each domain: both ends use none."""
    asked: list[str] = []
    ask_store = StoreClient.ask

    def spy(self: StoreClient, op: int, path: str, payload: bytes, tx_id: int = 0) -> asyncio.Future[Any]:
        asked.append(path)
        return ask_store(self, op, path, payload, tx_id)

    guest = await machine.start(GUEST, EchoFrontend)
    await machine.start(DOM0, EchoBackend)
    monkeypatch.setattr(StoreClient, "ask", spy)
    monkeypatch.setattr(StoreClient, "_ask", spy)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    assert await say(guest, id, b"x") == [b"X"]
    await machine.detach(id)
    assert f"{id.backend_path}/state" in asked
    assert [path for path in asked if path and not path.startswith(("/", "@"))] == []


# -- T5 ----------------------------------------------------------------------------------------------------------------


async def test_t05_an_ancestor_s_removal_is_the_device_s(echo: Half) -> None:
    """T5: the event of a removed ancestor has the watch's own path; only a look tells that the devices are gone."""
    ring = await echo.connect()
    await echo.back.settle()
    root = backend_root(DOM0, echo.id.device_class)
    await echo.machine.store.rm(root)
    await echo.back.settle()
    assert echo.back.devices == []
    assert await echo.machine.nodes(root) == {}
    ring.close()
    assert echo.machine.holdings(GUEST).grants_mapped == 0
    await echo.machine.store.rm(echo.id.frontend_path)
    await echo.machine.attach(echo.id)
    with await echo.connect() as ring:
        assert await ask(ring, b"a new one") == [b"a new one"]


async def test_t05_events_from_below_are_no_devices(echo: Half) -> None:
    """T5: events from deep below a device's directory, or from where no device is, disturb nobody."""
    with await echo.connect() as ring:
        root = backend_root(DOM0, echo.id.device_class)
        for path in (f"{echo.id.backend_path}/a/b/c", f"{root}/5/x/state", f"{root}/state", f"{root}/5/0x1/frontend"):
            await echo.machine.store.write(path, "1")
            await echo.machine.store.rm(path)
        await echo.back.settle()
        assert [dev.id for dev in echo.back.devices] == [echo.id]
        assert await ask(ring, b"undisturbed") == [b"undisturbed"]


async def test_t05_the_other_end_s_old_path_is_not_listened_to(echo: Half) -> None:
    """T5: once a device has gone, its other end's directory means nothing any more, whatever happens there."""
    ring = await echo.connect()
    await echo.machine.store.rm(echo.id.backend_path)
    await echo.back.settle()
    ring.close()
    before = await echo.machine.nodes("/local/domain/0")
    for state in (5, 6, 1, 3, 4):
        await echo.peer.write(state)
    await echo.back.settle()
    assert await echo.machine.nodes("/local/domain/0") == before


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
    """T7: a backend that has looked and is about to switch its state finds the directory gone, and writes nothing."""
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
    """T8: a peer that writes the state which stands there already means something by it; a driver gets to look."""
    looks: asyncio.Queue[State] = asyncio.Queue()

    class Looker(Backend, device_class="looker"):
        async def run(self, dev: BackendDevice) -> None:
            def look(seen: Seen) -> None:
                looks.put_nowait(seen.otherend)
                dev.check(seen)

            await dev.advertise()
            async with dev.connect(RING):
                await dev.until(look, "")

    await machine.start(DOM0, Looker)
    peer = Peer(await machine.start(GUEST), machine.id("looker"))
    await machine.attach(peer.id)
    with await peer.connect(RING):
        async with asyncio.timeout(DEADLINE_S):
            while await looks.get() is not State.CONNECTED:
                pass
            for _ in range(3):
                await peer.write(State.CONNECTED)
                assert await looks.get() is State.CONNECTED
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)


# -- T9 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, b"", b"0", b"9", b"-1", b"04", b" 4", b"4\n", b"4\0", b"\xff", b"four"])
def test_t09_a_state_that_does_not_parse_is_unknown(value: bytes | None) -> None:
    """T9: whatever is no state in decimal counts as one that is not there."""
    assert parse_state(value) is State.UNKNOWN


async def test_t09_a_frontend_that_writes_nonsense_is_gone(echo: Half) -> None:
    """T9: a connected frontend whose state stops to be one is closed like one that vanished; it may come back."""
    ring = await echo.connect()
    await echo.guest.store.write(f"{echo.peer.path}/state", "banana")
    await echo.backend(State.CLOSED)
    assert echo.machine.holdings(GUEST).grants_mapped == 0
    ring.close()
    await echo.peer.write(State.INITIALISING)
    with await echo.connect() as ring:
        assert await ask(ring, b"back") == [b"back"]


async def test_t09_a_device_that_vanishes_while_it_is_looked_at_is_no_error(
    machine: Machine, logged: list[dict[str, Any]]
) -> None:
    """T9: directories that come and go faster than anybody can look cause no error line and leave nothing behind."""
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


# -- T10, T11 ----------------------------------------------------------------------------------------------------------


async def test_t10_permissions_are_libxl_s_and_are_inherited(machine: Machine) -> None:
    """T10: each end owns its directory and may read the other; keys written later inherit that with no SET_PERMS."""
    await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    for path, perms in ((id.backend_path, ["n0", "r5"]), (id.frontend_path, ["n5", "r0"])):
        nodes = await machine.nodes(path)
        assert len(nodes) > 4
        for node in nodes:
            assert await machine.store.get_perms(node) == perms, node
    assert await guest.store.read(f"{id.backend_path}/feature-upper") == b"1"
    for refused in (
        guest.store.write(f"{id.backend_path}/state", "6"),
        guest.store.write(f"{id.backend_path}/new", "1"),
        guest.store.rm(id.backend_path),
    ):
        with pytest.raises(AccessDenied):
            await refused


async def test_t10_an_unprivileged_creator_becomes_the_owner(machine: Machine) -> None:
    """T10: what a domain makes in a directory that another let it write to is its own."""
    guest = await machine.start(GUEST)
    await machine.store.mkdir("/local/domain/0/shared")
    await machine.store.set_perms("/local/domain/0/shared", ["n0", "b5"])
    await guest.store.write("/local/domain/0/shared/mine", "1")
    assert await machine.store.get_perms("/local/domain/0/shared/mine") == ["n5", "b5"]


async def test_t11_the_frontend_cannot_say_who_it_is(echo: Half) -> None:
    """T11: a guest may rewrite all of its directory; the backend goes by its own path and directory alone."""
    victim = await echo.machine.start(Domid(6))
    await echo.peer.write(
        None,
        backend="/local/domain/0/backend/echo/6/0",
        backend_id=6,
        frontend="/local/domain/6/device/echo/0",
        frontend_id=6,
    )
    with await echo.connect() as ring:
        assert await ask(ring, b"still 5") == [b"still 5"]
        assert echo.dev.otherend.domid == GUEST
        assert echo.machine.holdings(GUEST).grants_mapped == 1
        assert echo.machine.holdings(victim.domid).grants_mapped == 0


@pytest.mark.parametrize(
    ("frontend", "frontend_id"),
    [
        ("/local/domain/6/device/echo/0", "5"),
        ("/local/domain/6/device/echo/0", "6"),
        ("/local/domain/55/device/echo/0", "5"),
        ("/local/domain/5", "5"),
        ("device/echo/0", "5"),
        ("", "5"),
        ("/local/domain/5/device/echo/0", "05"),
        ("/local/domain/5/device/echo/0", "banana"),
        ("/local/domain/32752/device/echo/0", "32752"),
    ],
)
async def test_t11_a_frontend_out_of_its_place_is_refused(
    machine: Machine, logged: list[dict[str, Any]], frontend: str, frontend_id: str
) -> None:
    """T11: `frontend` must lie below the domain that `frontend-id` and the backend's path agree on."""
    back = await machine.start(DOM0, EchoBackend)
    id = machine.id("echo")
    await machine.write(id.backend_path, frontend=frontend, frontend_id=frontend_id, online="1", state="1")
    await back.settle()
    assert {line["event"] for line in logged} == {"otherend.misplaced"}
    assert await machine.read(f"{id.backend_path}/state") == b"1"


async def test_t11_each_ring_key_is_read_once(echo: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """T11: what is checked and what is used are one copy: no ring key is read a second time."""
    read: list[str] = []
    read_store = echo.back.store.read

    def spy(path: str) -> asyncio.Future[bytes]:
        read.append(path)
        return read_store(path)

    monkeypatch.setattr(echo.back.store, "read", spy)
    with await echo.connect() as ring:
        await echo.peer.write(None, ring_ref=4_000_000, event_channel=0)
        assert await ask(ring, b"the old ones") == [b"the old ones"]
    for key in ("ring-ref", "event-channel"):
        assert read.count(f"{echo.peer.path}/{key}") == 1


# -- T12 ---------------------------------------------------------------------------------------------------------------


async def test_t12_a_storm_of_watch_events_is_one_dirty_flag(machine: Machine) -> None:
    """T12: a guest that floods its own directory makes the backend look now and then; nothing queues up, and the
    device of another domain works meanwhile."""
    one = await half(machine)
    honest = await machine.start(Domid(6), EchoFrontend)
    other = machine.id("echo", 6)
    await machine.attach(other)
    await machine.connected(other)
    with await one.connect() as ring:
        watch = one.dev._watch
        assert isinstance(watch, Watch)
        looks, most = 0, 0
        observe = one.dev.observe

        async def counted() -> Any:
            nonlocal looks, most
            looks, most = looks + 1, max(most, len(watch._hints))
            return await observe()

        one.dev.observe = counted  # type: ignore[method-assign]
        state = f"{one.peer.path}/state"
        rounds, each = 6, 200
        for number in range(rounds):
            storm = [one.guest.store.write(f"{state}/n{n}", str(number)) for n in range(each)]
            assert await say(honest, other, b"calm") == [b"CALM"]
            await asyncio.gather(*storm)
            most = max(most, len(watch._hints))
        await one.back.settle()
        assert 0 < looks < rounds * each
        assert most <= 1
        assert await ask(ring, b"me too") == [b"me too"]


async def test_t12_a_class_s_hints_are_bounded(machine: Machine) -> None:
    """T12: a whole class's watch keeps a bounded number of hints, however many directories are touched."""
    watch = await machine.store.watch("/local/domain/0/data", depth=2)
    await watch.wait()
    most = 0
    for start in range(0, 3000, 100):
        names = [f"/local/domain/0/data/a/n{number}" for number in range(start, start + 100)]
        await asyncio.gather(*(machine.store.write(name, "1") for name in names))
        most = max(most, len(watch._hints))
    assert most <= HINTS_MAX
    assert watch.take() == {"/local/domain/0/data"}


# -- T13 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda store: store.write("/local/domain/0/x", bytes(PAYLOAD_MAX)), InvalidPayload),
        (lambda store: store.read("/" + "x" * ABSOLUTE_PATH_MAX), InvalidPath),
        (lambda store: store.read("x" * 2049), InvalidPath),
        (lambda store: store.read("/a b"), InvalidPath),
        (lambda store: store.read("/a/"), InvalidPath),
        (lambda store: store.read("/a//b"), InvalidPath),
        (lambda store: store.read("/é"), InvalidPath),
    ],
    ids=["payload", "absolute", "relative", "space", "slash", "slashes", "letter"],
)
async def test_t13_what_breaks_a_limit_is_never_sent(
    machine: Machine, act: Callable[[StoreClient], Awaitable[Any]], error: type[ValueError]
) -> None:
    """T13: the store closes the connection on an oversize payload, so that nothing that breaks a limit is sent."""
    before = machine.store.requests
    with pytest.raises(error):
        async with asyncio.timeout(DEADLINE_S):
            await act(machine.store)
    assert (machine.store.requests, machine.store.reconnects) == (before, 0)


async def test_t13_one_watch_for_a_class_and_one_for_each_other_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13: a guest has 128 watches; a class costs it one, and each device one, on its other end's state."""
    watched: list[str] = []
    watch = StoreClient.watch

    async def spy(self: StoreClient, path: str, **how: Any) -> Watch:
        if self not in (machine.store,):
            watched.append(path)
        return await watch(self, path, **how)

    monkeypatch.setattr(StoreClient, "watch", spy)
    await machine.start(GUEST, EchoFrontend)
    await machine.start(DOM0, EchoBackend)
    ids = [machine.id("echo", devid=devid) for devid in range(8)]
    for id in ids:
        await machine.attach(id)
    for id in ids:
        await machine.connected(id)
    name = ids[0].device_class
    expected = [frontend_root(GUEST, name), backend_root(DOM0, name), "@releaseDomain", "@releaseDomain"]
    for id in ids:
        expected += [f"{id.backend_path}/state", f"{id.frontend_path}/state"]
    assert sorted(watched) == sorted(expected)


async def test_t13_a_guest_s_quotas(machine: Machine) -> None:
    """T13: the embedded store allows a guest what xenstored does, and its limits do not touch domain 0."""
    guest = (await machine.start(GUEST)).store
    home, mine = "/local/domain/5/data", "/local/domain/0/data"

    async def refused(request: Awaitable[Any]) -> None:
        with pytest.raises(StoreError) as caught:
            await request
        assert isinstance(caught.value, QuotaExceeded), caught.value

    for _ in range(128):
        await guest.watch(home)
    await refused(guest.watch(home))
    await guest.write(f"{home}/big", bytes(1900))
    await refused(guest.write(f"{home}/big", bytes(2048)))
    for _ in range(10):
        await guest.ask(Op.TRANSACTION_START, "", b"\0")
    await refused(guest.ask(Op.TRANSACTION_START, "", b"\0"))
    nodes = [guest.mkdir(f"{home}/{number // 100}/{number}") for number in range(1000)]
    answers = await asyncio.gather(*nodes, return_exceptions=True)
    assert {type(answer) for answer in answers} == {type(None), QuotaExceeded}
    for _ in range(140):
        await machine.store.watch(mine)
    await machine.store.write(f"{mine}/big", bytes(4000))


async def test_t13_a_guest_without_watches_left_does_not_spin(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """T13: a device that there is no watch left for is told of once, and tried again when something has happened."""
    await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    watches = [await guest.store.watch("/local/domain/5/data") for _ in range(126)]
    id = machine.id("echo")
    await machine.attach(id)
    await guest.settle()
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["device.failed"]
    error = await machine.read(id.error_path(Side.FRONTEND)) or b"nothing"
    assert error.startswith(b"7 store: WATCH /local/domain/0/backend/echo/5/0/state")
    await watches.pop().unwatch()
    await guest.store.write(f"{id.frontend_path}/nudge", "1")
    await machine.connected(id)
    await guest.settle()
    assert await machine.read(id.error_path(Side.FRONTEND)) is None


# -- T14 ---------------------------------------------------------------------------------------------------------------


async def test_t14_another_domain_s_end_is_not_ours(machine: Machine) -> None:
    """T14: `@releaseDomain` names nobody: when some domain dies, only its own devices end."""
    back = await machine.start(DOM0, EchoBackend)
    guests = [await machine.start(Domid(domid), EchoFrontend) for domid in (5, 6)]
    ids = [machine.id("echo", domid) for domid in (5, 6)]
    for id in ids:
        await machine.attach(id)
    for id in ids:
        await machine.connected(id)
    await machine.kill(Domid(6))
    await machine.until(ids[1], backend=State.CLOSED)
    assert await say(guests[0], ids[0], b"alive") == [b"ALIVE"]
    assert back.states(ids[0], "backend") == ["Initialising", "InitWait", "Connected"]


async def test_t14_a_death_that_leaves_the_directory_is_noticed(echo: Half) -> None:
    """T14: when the event comes, each domain is asked after: one that the store has forgotten is dead, though its
    directory still says Connected."""
    with await echo.connect():
        for node in await echo.machine.nodes(echo.id.frontend_path):
            await echo.machine.store.set_perms(node, ["n0", "b5"])  # the store drops what the dead domain owned
        await echo.machine.store.release(GUEST)
        await echo.machine.until(echo.id, backend=State.CLOSED, frontend=State.CONNECTED)
        assert echo.machine.holdings(GUEST).grants_mapped == 0


async def test_t14_a_guest_is_not_told_and_sees_its_backend_go(machine: Machine) -> None:
    """T14: `@releaseDomain` does not reach a guest; the loss of the other end's directory is the sign it goes by."""
    await machine.start(Domid(7), EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    released = await guest.store.watch("@releaseDomain")
    await released.wait()
    id = machine.id("echo", backend=7)
    await machine.attach(id)
    await machine.connected(id)
    await machine.kill(Domid(7))
    await machine.until(id, backend=State.UNKNOWN, frontend=State.CLOSED)
    assert released.take() == set()
    assert machine.holdings(GUEST).grants_shared == 0
