"""Rules T1 to T5, T12 and T14: the meaning of a watch's events, on a machine with both ends."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask, half, say
from xenbusd.bus.paths import backend_root
from xenbusd.bus.state import State
from xenbusd.errors import NodeExists
from xenbusd.ids import DOM0, Domid
from xenbusd.store.client import StoreClient
from xenbusd.store.watch import HINTS_MAX, Watch
from xenbusd.store.wire import Op
from xenbusd.testing import Machine
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING

# -- T1 ----------------------------------------------------------------------------------------------------------------


async def test_t01_a_watch_s_first_event_means_scan_now(machine: Machine) -> None:
    """T1: a watch fires once when it is registered, with its own path, whether the node exists or not."""
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


async def test_t02_states_that_were_never_seen_are_not_needed(echo: Half) -> None:
    """T2: a frontend that writes its whole life in one go is met in the state that the backend reads."""
    await echo.backend(State.INIT_WAIT)
    path = f"{echo.peer.path}/state"
    await asyncio.gather(*(echo.guest.store.write(path, b"%d" % state) for state in (3, 4, 5, 6)))
    await echo.backend(State.CLOSED)
    await asyncio.gather(*(echo.guest.store.write(path, b"%d" % state) for state in (1, 3, 6, 1)))
    await echo.backend(State.INIT_WAIT)
    with await echo.connect() as ring:
        assert await ask(ring, b"again") == [b"again"]


async def test_t02_an_event_is_a_reason_to_read_not_the_news(echo: Half) -> None:
    """T2: an event without news costs one read and changes nothing."""
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

    def spy(self: StoreClient, op: int, path: str, *rest: Any) -> asyncio.Future[Any]:
        asked.append(path)
        return ask_store(self, op, path, *rest)

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
    """T5: the event of a removed ancestor has the watch's own path; only reading shows that the devices are gone."""
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
    """T5: once a device has gone, changes of its other end's directory are ignored."""
    ring = await echo.connect()
    await echo.machine.store.rm(echo.id.backend_path)
    await echo.back.settle()
    ring.close()
    before = await echo.machine.nodes("/local/domain/0")
    for state in (5, 6, 1, 3, 4):
        await echo.peer.write(state)
    await echo.back.settle()
    assert await echo.machine.nodes("/local/domain/0") == before


# -- T12 ---------------------------------------------------------------------------------------------------------------


async def test_t12_a_storm_of_watch_events_is_one_dirty_flag(machine: Machine) -> None:
    """T12: a guest that floods its own directory makes the backend read now and then; nothing queues up, and the
    device of another domain works meanwhile."""
    one = await half(machine)
    honest = await machine.start(Domid(6), EchoFrontend)
    other = machine.id("echo", 6)
    await machine.attach(other)
    await machine.connected(other)
    with await one.connect() as ring:
        watch = one.dev._watch
        assert isinstance(watch, Watch)
        observed, most = 0, 0
        observe = one.dev.observe

        async def counted() -> Any:
            nonlocal observed, most
            observed, most = observed + 1, max(most, len(watch._hints))
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
        assert 0 < observed < rounds * each
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
    """T14: at the event, the store is asked about each domain: one that it has forgotten is dead, though its
    directory still says Connected."""
    with await echo.connect():
        for node in await echo.machine.nodes(echo.id.frontend_path):
            await echo.machine.store.set_perms(node, ["n0", "b5"])  # the store drops what the dead domain owned
        await echo.machine.store.release(GUEST)
        await echo.machine.until(echo.id, backend=State.CLOSED, frontend=State.CONNECTED)
        assert echo.machine.holdings(GUEST).grants_mapped == 0


async def test_t14_a_guest_gets_no_release_event_but_sees_its_backend_go(machine: Machine) -> None:
    """T14: `@releaseDomain` does not reach a guest; the guest goes by the loss of the other end's directory."""
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
