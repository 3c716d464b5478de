"""Rules T21 to T25: the conditions for a backend to connect, and the hotplug script, on a machine with both ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import GUEST, ask
from tests.doubles.nodes import error_node, mark_as_libxl_s
from xenbusd import log, toolstack
from xenbusd.api import Backend, BackendDevice
from xenbusd.bus.driver import ScriptCall
from xenbusd.bus.state import State
from xenbusd.errors import OtherendTimeout
from xenbusd.hotplug import ScriptRunner
from xenbusd.ids import DOM0, Devid, Domid
from xenbusd.testing import Machine, Peer
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.protocol import RING
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.protocol import X86_64


class Vif(Backend, device_class="vif"):
    """The part of a network backend that the bus sees."""

    async def run(self, dev: BackendDevice) -> None:
        """Connect."""
        await dev.advertise(feature_rx_copy=1, feature_sg=1)
        async with dev.connect(RING) as ring:
            await ring.serve(lambda: False)


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
    """T22: `hotplug-status` must be exactly "connected"; libxl makes it empty, so its existence means nothing."""
    back = await machine.start(DOM0, Vif)
    peer = Peer(await machine.start(GUEST), machine.id("vif"))
    await mark_as_libxl_s(machine, peer.id)
    await machine.attach(peer.id, {"script": "/etc/xen/scripts/vif-bridge", "hotplug-status": ""})
    await peer.until(State.INIT_WAIT)
    with await peer.offer(RING, state=State.CONNECTED):
        await machine.write(peer.otherend_path, hotplug_status=status)
        await back.settle()
        assert await peer.read("state") == b"2"
        assert str(back.device(peer.id).waiting_for).startswith("the hotplug script")
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

    class SlowVif(Backend, device_class="vif"):
        @classmethod
        def script_call(cls, action: str, domid: Domid, devid: Devid) -> ScriptCall:
            del domid, devid
            return ScriptCall(("online" if action == "add" else "offline", "type_if=vif"))

        async def run(self, dev: BackendDevice) -> None:
            await made.wait()
            await dev.advertise(feature_rx_copy=1)

    script = Script(tmp_path, SlowVif)
    back = await machine.start(DOM0, SlowVif, hotplug=script.runner)
    peer = Peer(await machine.start(GUEST), machine.id("vif"))
    await machine.attach(peer.id, {"script": str(script.path), "hotplug-status": ""})
    with await peer.offer(RING, state=State.CONNECTED):
        await back.settle()
        assert await peer.read("state") == b"1"
        assert not script.runner._turns
        made.set()
        await peer.until(State.INIT_WAIT)
        await script.meet()
    assert script.calls() == ["online type_if=vif"]


# -- T25 ---------------------------------------------------------------------------------------------------------------


class Script:
    """A hotplug script of the test's: it records its calls, and waits until the test releases it.

    The test plays the part of its xenstore-write, so that Xen's tools are not needed here.
    """

    def __init__(self, folder: Path, *drivers: type[Backend], status: int = 0) -> None:
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
        self.runner = ScriptRunner(
            store_socket=None, log=log.get(), drivers={driver.device_class: driver for driver in drivers}
        )

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
        assert not script.runner._turns
        await machine.write(peer.otherend_path, hotplug_status="connected")
        await peer.until(State.CONNECTED)
        await machine.ask_to_close(peer.id)
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
        await back.settle()
    assert not script.runner._turns
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


async def test_t25_a_script_that_fails_is_reported(machine: Machine, tmp_path: Path) -> None:
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
    await script.meet()  # a failed `add` may have done half of its work
    async with asyncio.timeout(DEADLINE_S):
        await detached
    assert await machine.snapshot() == before
