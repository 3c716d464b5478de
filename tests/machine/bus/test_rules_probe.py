"""Rules T15 to T20: how a device is found and reaches InitWait, on a machine with both ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask
from tests.doubles.nodes import error_node, mark_as_libxl_s
from xenbusd import toolstack
from xenbusd.api import Backend, BackendDevice, Frontend, FrontendDevice
from xenbusd.bus import backend as backend_module
from xenbusd.bus.state import Side, State
from xenbusd.errors import OtherendTimeout
from xenbusd.ids import DOM0
from xenbusd.testing import Machine, Peer
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.protocol import RING, Line

FOREVER_S = 3600.0


# -- T15 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["", "0", "9", "banana"])
async def test_t15_what_is_no_state_is_no_device(machine: Machine, state: str, logged: list[dict[str, Any]]) -> None:
    """T15: a directory without a real state is left alone, and not read again and again; with 1 it begins."""
    await machine.start(GUEST)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.write(id.backend_path, state=state)
    back = await machine.start(DOM0, EchoBackend)
    await back.settle()
    assert back.devices == []
    assert [line for line in logged if line["event"] == "device.appeared"] == []
    await machine.write(id.backend_path, state="1")
    await machine.until(id, backend=State.INIT_WAIT)


@pytest.mark.parametrize("state", ["3", "8"])
async def test_t15_only_initialising_is_new(machine: Machine, state: str) -> None:
    """T15: a backend found at another state than 1 is not begun with before it was brought to its Closed."""
    await machine.start(GUEST)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.write(id.backend_path, state=state)
    back = await machine.start(DOM0, EchoBackend)
    await machine.until(id, backend=State.INIT_WAIT)
    assert back.states(id, "backend")[1:] == ["Closing", "Closed", "InitWait"]


async def test_t15_init_wait_is_gone_through_again(echo: Half) -> None:
    """T15: a backend process that finds InitWait left by its predecessor publishes its keys again and keeps waiting."""
    await echo.backend(State.INIT_WAIT)
    await echo.back.stop()
    await echo.machine.store.rm(f"{echo.id.backend_path}/feature-upper")
    with await echo.peer.offer(RING) as ring:
        await echo.machine.start(DOM0, EchoBackend)
        await echo.backend(State.CONNECTED)
        assert await echo.peer.read("feature-upper") == b"1"
        await echo.peer.write(State.CONNECTED)
        assert await ask(ring, b"adopted") == [b"adopted"]


async def test_t15_a_connected_pair_is_adopted(echo: Half) -> None:
    """T15: be 4 with fe 4 is adopted; requests put into the ring meanwhile are answered, and no state changes."""
    with await echo.connect() as ring:
        assert await ask(ring, b"before", b"and") == [b"before", b"and"]
        await echo.back.stop()
        assert echo.machine.holdings(GUEST).grants_mapped == 0
        assert await echo.peer.read("state") == b"4"
        ring.send(Line(7, b"between").pack())
        successor = await echo.machine.start(DOM0, EchoBackend)
        assert [Line.unpack(slot) for slot in await ring.take(1)] == [Line(7, b"between")]
        assert await ask(ring, b"after") == [b"after"]
        assert successor.states(echo.id, "backend") == ["Connected"]
        await echo.peer.write(State.CLOSING)
        await echo.backend(State.CLOSING)
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
    assert echo.machine.holdings(GUEST).grants_mapped == 0


async def test_t15_the_ring_of_a_killed_process_is_not_adopted(echo: Half) -> None:
    """T15: if the previous process was killed, its ring may hold answers in the place of requests: the pair begins
    again, and the frontend sees each state of it."""
    with await echo.connect() as ring:
        assert await ask(ring, b"before") == [b"before"]
        await echo.back.kill()
        assert echo.machine.holdings(GUEST).grants_mapped == 0
        await echo.machine.start(DOM0, EchoBackend)
        await echo.backend(State.CLOSING)
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
    await echo.peer.write(State.INITIALISING)
    with await echo.connect() as ring:
        assert await ask(ring, b"after") == [b"after"]


@pytest.mark.parametrize("be", [State.CLOSING, State.CLOSED])
async def test_t15_a_close_is_finished(machine: Machine, be: State) -> None:
    """T15: a backend process that finds 5 or 6 finishes that close, and then reconnects as ever."""
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await machine.attach(peer.id)
    await machine.write(peer.otherend_path, state=str(int(be)))
    await peer.write(State.CLOSING)
    await machine.start(DOM0, EchoBackend)
    await peer.write(State.CLOSED)
    await peer.until(State.CLOSED)
    await peer.write(State.INITIALISING)
    with await peer.connect(RING) as ring:
        assert await ask(ring, b"once more") == [b"once more"]


async def test_t15_a_half_made_connection_is_closed(machine: Machine) -> None:
    """T15: be 4 with a frontend that is not at 4 is no ring to adopt: it is closed, and made anew."""
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await machine.attach(peer.id)
    await machine.write(peer.otherend_path, state="4")
    with await peer.offer(RING):
        await machine.start(DOM0, EchoBackend)
        await peer.until(State.CLOSING)
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
    await peer.write(State.INITIALISING)
    await peer.until(State.INIT_WAIT)


# -- T16 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["frontend", "frontend-id", "state"])
async def test_t16_a_device_begins_when_its_directory_is_complete(machine: Machine, last: str) -> None:
    """T16: the probe waits until `frontend`, `frontend-id` and `state` are all there, in whatever order they come."""
    back = await machine.start(DOM0, EchoBackend)
    await machine.start(GUEST)
    id = machine.id("echo")
    await machine.write(id.frontend_path, backend=id.backend_path, backend_id="0", state="1")
    nodes = {"online": "1", "frontend": id.frontend_path, "frontend-id": "5", "state": "1"}
    final = nodes.pop(last)
    for key, value in nodes.items():
        await machine.store.write(f"{id.backend_path}/{key}", value)
        await back.settle()
        assert back.devices == []
    await machine.store.write(f"{id.backend_path}/{last}", final)
    await machine.until(id, backend=State.INIT_WAIT)


@pytest.mark.parametrize("place", ["x/0", "5/x", "5/-1", "05/0", "5/00", "5/0x1", "32752/0", "5", "5/4294967296"])
async def test_t16_only_numbers_name_devices(machine: Machine, logged: list[dict[str, Any]], place: str) -> None:
    """T16: below a class stand a domid and a number, in decimal and without leading zeros; nothing else is a device."""
    back = await machine.start(DOM0, EchoBackend)
    await machine.start(GUEST)
    domid = place.partition("/")[0]
    path = f"/local/domain/0/backend/echo/{place}"
    frontend = f"/local/domain/{domid}/device/echo/0"
    await machine.write(path, frontend=frontend, frontend_id=domid, online="1", state="1")
    await back.settle()
    assert [line for line in logged if line["event"] == "device.appeared"] == []
    assert await machine.read(f"{path}/state") == b"1"


async def test_t16_a_frontend_stands_two_levels_deep(machine: Machine) -> None:
    """T16: a frontend's directory is `device/<class>/<id>`; what is deeper or elsewhere is none."""

    class Idle(Frontend, device_class="echo"):
        async def run(self, dev: FrontendDevice) -> None:
            await dev.backend_ready()

    guest = await machine.start(GUEST, Idle)
    for place in ("echo/0/1", "echo/x", "other/0"):
        await machine.write(
            f"/local/domain/5/device/{place}", backend="/local/domain/0/backend/echo/5/0", backend_id="0", state="1"
        )
    await guest.settle()
    assert guest.devices == []
    id = machine.id("echo", devid=51712)
    await machine.attach(id)
    await guest.settle()
    assert [str(dev.id) for dev in guest.devices] == ["echo/5/51712"]


# -- T17, T18 ----------------------------------------------------------------------------------------------------------


async def test_t17_the_frontend_must_be_there(machine: Machine) -> None:
    """T17: a backend whose frontend has no directory reports ENOENT and closes without ever showing InitWait."""
    back = await machine.start(DOM0, EchoBackend)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    id = peer.id
    await machine.write(id.backend_path, frontend=id.frontend_path, frontend_id="5", online="1", state="1")
    await machine.until(id, backend=State.CLOSED)
    assert back.states(id, "backend") == ["Initialising", "Closed"]
    assert (await error_node(machine, id)).startswith(b"2 /local/domain/5/device/echo/0 ")
    await machine.write(id.frontend_path, backend=id.backend_path, backend_id="0", state="1")
    await machine.until(id, backend=State.INIT_WAIT)  # it has come after all


async def test_t17_the_backend_must_be_there(machine: Machine) -> None:
    """T17: a frontend whose backend has no directory reports ENOENT and closes."""

    class Idle(Frontend, device_class="echo"):
        async def run(self, dev: FrontendDevice) -> None:
            await dev.backend_ready()

    await machine.start(GUEST, Idle)
    id = machine.id("echo")
    await machine.store.mkdir(id.frontend_path)
    await machine.store.set_perms(id.frontend_path, ["n5", "r0"])
    await machine.write(id.frontend_path, backend=id.backend_path, backend_id="0", state="1")
    await machine.until(id, frontend=(State.CLOSING, State.CLOSED))
    assert (await error_node(machine, id, Side.FRONTEND)).startswith(b"2 /local/domain/0/backend/echo/5/0 ")


async def test_t18_keys_are_published_before_init_wait(machine: Machine) -> None:
    """T18: at no moment is the backend at InitWait without the keys that the frontend reads there."""
    states: list[tuple[bytes | None, bytes | None]] = []
    observer = await machine.start(DOM0)
    id = machine.id("echo")
    changed = asyncio.Event()
    watch = await observer.store.watch(id.backend_path, wake=changed.set)

    async def observe() -> None:
        while (b"2", b"1") not in states:
            await changed.wait()
            changed.clear()
            watch.take()
            state, feature = (
                observer.store.read(f"{id.backend_path}/state"),
                observer.store.read(f"{id.backend_path}/feature-upper"),
            )
            pair = await asyncio.gather(state, feature, return_exceptions=True)
            states.append(tuple(None if isinstance(value, BaseException) else value for value in pair))  # type: ignore[arg-type]

    task = asyncio.create_task(observe())
    await machine.start(GUEST)
    await machine.start(DOM0, EchoBackend)
    await machine.attach(id)
    async with asyncio.timeout(DEADLINE_S):
        await task
    assert (b"2", None) not in states


# -- T19, T20 ----------------------------------------------------------------------------------------------------------


async def test_t19_init_wait_stands_for_libxl_to_see(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """T19: libxl waits for exactly 2; where it runs no script, 2 is held for a while though the frontend is ready."""
    monkeypatch.setattr(backend_module, "INIT_WAIT_S", FOREVER_S)
    back = await machine.start(DOM0, EchoBackend)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await mark_as_libxl_s(machine, peer.id)
    await machine.attach(peer.id)
    with await peer.offer(RING):
        await peer.until(State.INIT_WAIT)
        await back.settle()
        assert await peer.read("state") == b"2"
        assert str(back.device(peer.id).waiting_for) == "libxl may not have seen InitWait"
        await peer.write(State.CLOSED)  # and meanwhile it can be closed
        await peer.until(State.CLOSED)


async def test_t19_the_time_passes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """T19: after that time the handshake goes on; a reconnect, which libxl does not wait for, is not held up."""
    monkeypatch.setattr(backend_module, "INIT_WAIT_S", 0.001)
    await machine.start(DOM0, EchoBackend)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await mark_as_libxl_s(machine, peer.id)
    await machine.attach(peer.id)
    with await peer.connect(RING):
        monkeypatch.setattr(backend_module, "INIT_WAIT_S", FOREVER_S)
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
    await peer.write(State.INITIALISING)
    with await peer.connect(RING) as ring:
        assert await ask(ring, b"at once") == [b"at once"]


async def test_t19_our_own_devices_wait_for_nobody(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """T19: a device that our own toolstack made is not held at InitWait: that one accepts what comes after it."""
    monkeypatch.setattr(backend_module, "INIT_WAIT_S", FOREVER_S)
    await machine.start(DOM0, EchoBackend)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await machine.attach(peer.id)
    with await peer.connect(RING) as ring:
        assert await ask(ring, b"at once") == [b"at once"]


async def test_t20_a_failed_probe_leaves_the_directory(machine: Machine) -> None:
    """T20: a backend that fails before InitWait says so and closes; its directory, which libxl watches, stays."""

    class Broken(Backend, device_class="broken"):
        async def run(self, dev: BackendDevice) -> None:
            dev.counters["errors"] += 1
            raise OSError(28, "No space left on device")

    await machine.start(DOM0, Broken)
    peer = Peer(await machine.start(GUEST), machine.id("broken"))
    await machine.attach(peer.id)
    await machine.until(peer.id, backend=State.CLOSED)
    assert await error_node(machine, peer.id) == b"28 [Errno 28] No space left on device"
    assert await peer.read("frontend") == peer.path.encode()
    with pytest.raises(OtherendTimeout, match=r"reports: 28 .*No space left"):
        await toolstack.wait_connected(machine.store, peer.id, deadline_s=DEADLINE_S)
