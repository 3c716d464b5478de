"""The field survey's rules on probing, hotplug and the handshake, T15 to T28, on a machine with both ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask
from xenbusd import log, toolstack
from xenbusd.api import Backend, BackendDevice, Frontend, FrontendDevice, RingFormat
from xenbusd.bus import backend as backend_module
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.errors import OtherendTimeout
from xenbusd.hotplug import ScriptRunner
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import Machine, Peer
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.protocol import RING, Line
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.protocol import X86_64

FOREVER_S = 3600.0


class Vif(Backend, device_class="vif"):
    """As much of a network backend as the bus sees."""

    async def run(self, dev: BackendDevice) -> None:
        """Connect."""
        await dev.advertise(feature_rx_copy=1, feature_sg=1)
        async with dev.connect(RING) as ring:
            await ring.serve(lambda: False)


async def mark_as_libxl_s(machine: Machine, id: DeviceId) -> None:
    """Note the device where libxl notes those that it manages."""
    await machine.write(id.libxl_path, backend=id.backend_path, frontend=id.frontend_path)


async def error_node(machine: Machine, id: DeviceId, side: Side = Side.BACKEND) -> bytes:
    """What an end has left in its error node."""
    return await machine.read(id.error_path(side)) or b"nothing"


# -- T15 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["", "0", "9", "banana"])
async def test_t15_what_is_no_state_is_no_device(machine: Machine, state: str, logged: list[dict[str, Any]]) -> None:
    """T15: a directory without a real state is left alone, and not looked at again and again; with 1 it begins."""
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
    """T15: a backend process that finds InitWait left by the one before publishes its keys again and waits on."""
    await echo.backend(State.INIT_WAIT)
    await echo.back.stop()
    await echo.machine.store.rm(f"{echo.id.backend_path}/feature-upper")
    with await echo.peer.offer(RING) as ring:
        await echo.machine.start(DOM0, EchoBackend)
        await echo.backend(State.CONNECTED)
        assert await echo.peer.read("feature-upper") == b"1"
        await echo.peer.write(State.CONNECTED)
        assert await ask(ring, b"adopted") == [b"adopted"]


async def test_t15_a_connected_pair_is_attached_to_again(echo: Half) -> None:
    """T15: be 4 with fe 4 is gone on with; what was put into the ring meanwhile is answered, and no state changes."""
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


async def test_t15_the_ring_of_a_killed_process_is_not_gone_on_with(echo: Half) -> None:
    """T15: when the process before was killed, its ring may hold answers in the place of requests: the pair begins
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
    """T15: be 4 with a frontend that is not at 4 is no ring to go on with: it is closed, and made anew."""
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
        assert back.device(peer.id).waiting_for == "libxl to see InitWait"
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


# -- T21 to T24 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["script", "frontend"])
async def test_t21_a_disk_waits_for_its_script_and_its_frontend(machine: Machine, tmp_path: Path, first: str) -> None:
    """T21: with a `script`, a vbd connects once the script has reported and the frontend has offered, in any order."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8192))
    back = await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=51712))
    await mark_as_libxl_s(machine, peer.id)
    await machine.attach(peer.id, {"params": "/dev/no-such-name", "mode": "w", "script": "/etc/xen/scripts/block"})
    await peer.until(State.INIT_WAIT)
    with peer.ring(X86_64.ring) as ring:

        async def script() -> None:
            await machine.write(peer.otherend_path, physical_device_path=str(image), physical_device="fe:0")
            await machine.write(peer.otherend_path, hotplug_status="connected")

        async def frontend() -> None:
            await peer.write(State.INITIALISED, ring_ref=ring.grefs[0], event_channel=ring.port, protocol=X86_64.name)

        steps = [script, frontend] if first == "script" else [frontend, script]
        await steps[0]()
        await back.settle()
        assert await peer.read("state") == b"2"
        await steps[1]()
        await peer.until(State.CONNECTED)
        assert await peer.read("sectors") == b"16"


async def test_t21_a_disk_without_a_script_connects_by_its_params(machine: Machine, tmp_path: Path) -> None:
    """T21: a vbd whose directory names no script needs no report: `params` says what to open."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=51712))
    await machine.attach(peer.id, {"params": f"raw:{image}", "mode": "r"})
    with await peer.connect(X86_64.ring, protocol=X86_64.name):
        assert await peer.read("sectors") == b"8"
        assert await peer.read("hotplug-status") is None


@pytest.mark.parametrize("status", ["", "error", "busy", "connected\n", "Connected", "connecte", "1"])
async def test_t22_only_connected_opens_the_gate(machine: Machine, status: str) -> None:
    """T22: `hotplug-status` must be exactly "connected"; libxl makes it empty, so that it exists says nothing."""
    back = await machine.start(DOM0, Vif)
    peer = Peer(await machine.start(GUEST), machine.id("vif"))
    await mark_as_libxl_s(machine, peer.id)
    await machine.attach(peer.id, {"script": "/etc/xen/scripts/vif-bridge", "hotplug-status": ""})
    await peer.until(State.INIT_WAIT)
    with await peer.offer(RING, state=State.CONNECTED):
        await machine.write(peer.otherend_path, hotplug_status=status)
        await back.settle()
        assert await peer.read("state") == b"2"
        assert back.device(peer.id).waiting_for.startswith("the hotplug script to report")
        await machine.write(peer.otherend_path, hotplug_status="connected")
        await peer.until(State.CONNECTED)


async def test_t23_hotplug_status_outlives_a_connection(machine: Machine) -> None:
    """T23: the script runs once in a device's life, so its report outlives the connection, or the next would hang."""
    await machine.start(DOM0, Vif)
    peer = Peer(await machine.start(GUEST), machine.id("vif"))
    await mark_as_libxl_s(machine, peer.id)
    await machine.attach(peer.id, {"script": "/etc/xen/scripts/vif-bridge", "hotplug-status": ""})
    await peer.until(State.INIT_WAIT)
    await machine.write(peer.otherend_path, hotplug_status="connected")
    for _ in range(3):
        with await peer.connect(RING):
            await peer.write(State.CLOSING)
            await peer.until(State.CLOSING)
            await peer.write(State.CLOSED)
            await peer.until(State.CLOSED)
        assert await peer.read("hotplug-status") == b"connected"
        await peer.write(State.INITIALISING)
    await peer.until(State.INIT_WAIT)


async def test_t24_the_interface_exists_before_init_wait(machine: Machine, tmp_path: Path) -> None:
    """T24: a vif's script begins as soon as 2 is seen and needs the interface: until the driver has made it, the state
    stays 1 and no script runs, though the frontend is ready."""
    made = asyncio.Event()
    script = Script(tmp_path)

    class SlowVif(Backend, device_class="vif"):
        async def run(self, dev: BackendDevice) -> None:
            await made.wait()
            await dev.advertise(feature_rx_copy=1)

    back = await machine.start(DOM0, SlowVif, hotplug=script.runner)
    peer = Peer(await machine.start(GUEST), machine.id("vif"))
    await machine.attach(peer.id, {"script": str(script.path), "hotplug-status": ""})
    with await peer.offer(RING, state=State.CONNECTED):
        await back.settle()
        assert await peer.read("state") == b"1"
        assert script.runner.busy == 0
        made.set()
        await peer.until(State.INIT_WAIT)
        await script.meet()
    assert script.calls() == ["online type_if=vif"]


# -- T25 ---------------------------------------------------------------------------------------------------------------


class Script:
    """A hotplug script of the test's: it writes down how it was called, and waits until the test lets it go on.

    The test plays the part of its xenstore-write, so that Xen's tools are not needed here.
    """

    def __init__(self, folder: Path, *, status: int = 0) -> None:
        self.path = folder / "script"
        self._calls = folder / "calls"
        self._environ = folder / "environ"
        self._gate = folder / "gate"
        os.mkfifo(self._gate)
        self.path.write_text(
            f'#!/bin/sh\necho "$@" >>{self._calls}\nenv >{self._environ}.$1\nread word <{self._gate}\n'
            f'echo "no bridge $word" >&2\nexit {status}\n'
        )
        self.path.chmod(0o755)
        self.runner = ScriptRunner(store_socket=None, log=log.get())

    async def meet(self, then: Callable[[], Any] | None = None) -> None:
        """Wait until a run of the script has begun; do something; let it end."""
        async with asyncio.timeout(DEADLINE_S):
            with await asyncio.to_thread(self._gate.open, "w") as gate:
                if then is not None:
                    await then()
                gate.write("here\n")

    def calls(self) -> list[str]:
        """The arguments of each run."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def environ(self, action: str) -> dict[str, str]:
        """The environment of the last run for an action."""
        lines = self._environ.with_name(f"environ.{action}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


async def test_t25_our_device_s_script_is_run_at_init_wait_and_at_the_end(machine: Machine, tmp_path: Path) -> None:
    """T25: for a device that our own tool attached we run `add` while be is 2, and `remove` once it is 6, with the
    arguments and variables of libxl; its directory outlives the script."""
    script = Script(tmp_path)
    await machine.start(DOM0, EchoBackend, hotplug=script.runner)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    before = await machine.snapshot()
    await machine.attach(peer.id, {"script": str(script.path)})

    async def report() -> None:
        assert await peer.read("state") == b"2"
        await machine.write(peer.otherend_path, hotplug_status="connected")

    with await peer.offer(RING):
        await script.meet(report)
        await peer.until(State.CONNECTED)
        await peer.write(State.CONNECTED)
        environ = script.environ("add")
        assert environ["XENBUS_PATH"] == "backend/echo/5/0"
        assert (environ["XENBUS_TYPE"], environ["XENBUS_BASE_PATH"]) == ("echo", "backend")
        assert environ["script"] == str(script.path)
        detached = asyncio.create_task(machine.detach(peer.id))
        await peer.until(State.CLOSING)
        await peer.write(State.CLOSED)

    async def outlived() -> None:
        assert await peer.read("state") == b"6"
        assert await peer.read("script") == str(script.path).encode()
        assert not detached.done()

    await script.meet(outlived)
    async with asyncio.timeout(DEADLINE_S):
        await detached
    assert script.calls() == ["add", "remove"]
    assert await machine.snapshot() == before


async def test_t25_libxl_runs_the_scripts_of_its_devices(machine: Machine, tmp_path: Path) -> None:
    """T25: exactly one runner: where libxl has noted the device, we run its script at neither end of its life."""
    script = Script(tmp_path)
    back = await machine.start(DOM0, EchoBackend, hotplug=script.runner)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await mark_as_libxl_s(machine, peer.id)
    await machine.attach(peer.id, {"script": str(script.path)})
    await peer.until(State.INIT_WAIT)
    with await peer.offer(RING):
        await back.settle()
        assert await peer.read("state") == b"2"
        assert script.runner.busy == 0
        await machine.write(peer.otherend_path, hotplug_status="connected")
        await peer.until(State.CONNECTED)
        await machine.ask_to_close(peer.id)
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
        await back.settle()
    assert script.runner.busy == 0
    assert script.calls() == []
    assert await peer.read("hotplug-status") == b"connected"


async def test_t25_a_script_runs_once_in_a_device_s_life(machine: Machine, tmp_path: Path) -> None:
    """T25: neither a reconnect nor a new process that finds InitWait runs `add` again; `remove` is still owed."""
    script = Script(tmp_path)
    back = await machine.start(DOM0, EchoBackend, hotplug=script.runner)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await machine.attach(peer.id, {"script": str(script.path)})
    await script.meet(lambda: machine.write(peer.otherend_path, hotplug_status="connected"))
    with await peer.connect(RING):
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
    await peer.write(State.INITIALISING)
    await peer.until(State.INIT_WAIT)
    await back.stop()
    await machine.start(DOM0, EchoBackend, hotplug=script.runner)
    with await peer.connect(RING) as ring:
        assert await ask(ring, b"one script") == [b"one script"]
        detached = asyncio.create_task(machine.detach(peer.id))
        await peer.until(State.CLOSING)
        await peer.write(State.CLOSED)
    await script.meet()
    async with asyncio.timeout(DEADLINE_S):
        await detached
    assert script.calls() == ["add", "remove"]


async def test_t25_a_script_that_fails_is_told_of(machine: Machine, tmp_path: Path) -> None:
    """T25: a script that exits with another status than 0 has failed: `hotplug-status`, `hotplug-error` and the error
    node say so, and the backend stays at InitWait until the toolstack takes the device away."""
    script = Script(tmp_path, status=3)
    await machine.start(DOM0, EchoBackend, hotplug=script.runner)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    before = await machine.snapshot()
    await machine.attach(peer.id, {"script": str(script.path)})
    with await peer.offer(RING):
        await script.meet()
        with pytest.raises(OtherendTimeout, match="exited with 3: no bridge here"):
            await toolstack.wait_connected(machine.store, peer.id, deadline_s=DEADLINE_S)
        assert await peer.read("hotplug-status") == b"error"
        assert b"no bridge here" in (await peer.read("hotplug-error") or b"")
        assert b"no bridge here" in await error_node(machine, peer.id)
        assert await peer.read("state") == b"2"
    await peer.write(State.CLOSED)
    detached = asyncio.create_task(machine.detach(peer.id))
    await script.meet()  # a failed `add` may have half done its work
    async with asyncio.timeout(DEADLINE_S):
        await detached
    assert await machine.snapshot() == before


# -- T26 to T28 --------------------------------------------------------------------------------------------------------


async def test_t26_a_disk_s_ring_parameters_stand_at_init_wait(machine: Machine, tmp_path: Path) -> None:
    """T26: blkfront reads the ring's parameters at 2: the order, the number of queues and the segments of an indirect
    request are there by then."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=51712))
    await machine.attach(peer.id, {"params": str(image), "mode": "w"})
    await peer.until(State.INIT_WAIT)
    assert await peer.read("max-ring-page-order") == b"4"
    assert int(await peer.read("multi-queue-max-queues") or 0) > 1
    assert await peer.read("feature-max-indirect-segments") == b"256"


@pytest.mark.parametrize("mode", ["w", "r"])
async def test_t27_a_disk_s_properties_stand_at_connected(machine: Machine, tmp_path: Path, mode: str) -> None:
    """T27: `sectors`, `info`, `sector-size` and the features are there when the backend is at 4, not before 3."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=51712))
    await machine.attach(peer.id, {"params": str(image), "mode": mode})
    await peer.until(State.INIT_WAIT)
    assert await peer.read("sectors") is None
    with await peer.offer(X86_64.ring, protocol=X86_64.name):
        await peer.until(State.CONNECTED)
        found = {key.rpartition("/")[2]: value for key, value in (await machine.nodes(peer.otherend_path)).items()}
    writable = b"1" if mode == "w" else b"0"
    wanted = {
        "sectors": b"2048",
        "info": b"0" if mode == "w" else b"4",
        "sector-size": b"512",
        "feature-persistent": b"1",
        "feature-flush-cache": writable,
        "feature-barrier": writable,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert found["physical-sector-size"] in (b"512", b"4096")  # the file system's
    assert ("feature-discard" in found) == ("discard-granularity" in found) == ("discard-alignment" in found)


class Wide(Backend, device_class="wide"):
    """A backend that takes rings of up to four pages."""

    FORMAT = RingFormat(64, Line, Line, max_order=2)

    async def run(self, dev: BackendDevice) -> None:
        """Echo."""
        await dev.advertise(max_ring_page_order=2)
        async with dev.connect(self.FORMAT) as ring:
            async for line in ring:
                ring.reply(line)


@pytest.mark.parametrize(("order", "slots"), [(None, 32), (0, 32), (1, 64), (2, 128)])
async def test_t28_both_spellings_of_a_ring(machine: Machine, order: int | None, slots: int) -> None:
    """T28: without `ring-page-order` one page in `ring-ref`; with it, even as 0, `ring-ref0` and so on."""
    await machine.start(DOM0, Wide)
    peer = Peer(await machine.start(GUEST), machine.id("wide"))
    await machine.attach(peer.id)
    with await peer.connect(Wide.FORMAT, order=order) as ring:
        assert ring.end.size == slots
        assert await ask(ring, *(b"%d" % n for n in range(slots))) == [b"%d" % n for n in range(slots)]


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"ring-page-order": 3}, b"ring-page-order holds '3', which is no ring page order up to 2"),
        ({"ring-page-order": 1}, b"ring-ref0 is missing"),
        ({"ring-ref": b"0x8"}, b"ring-ref holds '0x8', which is no grant reference"),
        ({"ring-ref": 1 << 32}, b"ring-ref holds '4294967296', which is no grant reference"),
        ({"ring-ref": b""}, b"ring-ref holds '', which is no grant reference"),
        ({"ring-ref": b"\xb2"}, b"ring-ref holds '"),
        ({"event-channel": b"-1"}, b"event-channel holds '-1', which is no event channel port"),
        ({"multi-queue-num-queues": 2}, b"multi-queue-num-queues is 2; 1 to 1 can be had"),
        ({"multi-queue-num-queues": 0}, b"multi-queue-num-queues is 0; 1 to 1 can be had"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_t28_an_offer_that_is_not_sound_is_fatal(
    machine: Machine, keys: dict[str, Any], complaint: bytes
) -> None:
    """T28: an order or a number of queues above the offer, and keys that are missing or no numbers, end the connection
    with an error that names the key; the next one may succeed."""
    await machine.start(DOM0, Wide)
    peer = Peer(await machine.start(GUEST), machine.id("wide"))
    await machine.attach(peer.id)
    await peer.until(State.INIT_WAIT)
    with await peer.offer(Wide.FORMAT, **keys):
        await peer.until(State.CLOSING)
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
    error = await error_node(machine, peer.id)
    assert error.startswith(b"22 /local/domain/5/device/wide/0/" + complaint)
    for key in keys:
        await peer.store.rm(f"{peer.path}/{key}")
    await peer.write(State.INITIALISING)
    with await peer.connect(Wide.FORMAT) as ring:
        assert await ask(ring, b"sound") == [b"sound"]
    assert machine.holdings(Domid(5)).grants_mapped in (0, 1)


async def test_t28_one_queue_may_be_said_aloud(machine: Machine) -> None:
    """T28: `multi-queue-num-queues` of 1 means the same as none: keys at the top."""
    await machine.start(DOM0, Wide)
    peer = Peer(await machine.start(GUEST), machine.id("wide"))
    await machine.attach(peer.id)
    with await peer.connect(Wide.FORMAT, multi_queue_num_queues=1) as ring:
        assert await ask(ring, b"one queue") == [b"one queue"]
