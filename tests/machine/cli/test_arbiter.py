"""A daemon in arbiter mode, with a stand-in for the kernel: the devices that it serves, and the state it leaves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from tests.doubles.kernel_by_hand import KernelByHand
from xenbusd import daemon as module
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.config import Config, DaemonConfig
from xenbusd.daemon import Daemon, release
from xenbusd.errors import DriverError, StoreLost, UsageError
from xenbusd.host.sim.client import SimHost
from xenbusd.ids import DOM0, Domid
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.testing import Machine
from xenbusd.testing.machine import DEADLINE_S

OURS, STOCK = "/etc/xen/scripts/block-xenbusd", "/etc/xen/scripts/block"
XVDA = 51712


@pytest.fixture
def bus(tmp_path: Path) -> KernelByHand:
    """A kernel with a driver for vbd, not loaded."""
    return KernelByHand(tmp_path, "vbd")


@pytest.fixture
async def config(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration of arbiter mode on a host that passes for a real one; domain 5 exists."""
    await machine.start(Domid(5))
    monkeypatch.setattr("xenbusd.host.real.store_endpoint", lambda: unix_endpoint(machine.socket + ".store"))
    return Config(DaemonConfig(run_dir=str(machine.folder / "run"), classes=("echo", "vbd"), arbiter=True))


@asynccontextmanager
async def serving(machine: Machine, config: Config, bus: KernelByHand) -> AsyncIterator[Daemon]:
    """A daemon for a while, which stops in order."""
    with closing(SimHost(machine.socket, DOM0)) as host:
        daemon = Daemon(Side.BACKEND, host, config, bus)
        task = asyncio.create_task(daemon.run())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await daemon.ready.wait()
            yield daemon
        finally:
            daemon.stop()
            await task


async def attach(machine: Machine, bus: KernelByHand, devid: int, script: str) -> DeviceId:
    """A disk of domain 5, as xl and the kernel make it."""
    id = machine.id("vbd", devid=devid)
    await machine.store.write(f"{id.libxl_path}/backend", id.backend_path)  # its script is libxl's to run
    await machine.attach(id, {"script": script, "params": "/nowhere", "mode": "w"})
    bus.appear("vbd", 5, devid)
    return id


async def bound(machine: Machine, bus: KernelByHand, bus_id: str) -> None:
    """Wait until the kernel has a device. The stand-in sends no events, so the next check of the whole bus has to find
    the device.
    """
    async with asyncio.timeout(DEADLINE_S):
        while bus.driver(bus_id) is None:
            await machine.store.read("domid")


async def state(machine: Machine, id: DeviceId) -> bytes:
    """The state in a backend's directory."""
    return await machine.store.read(f"{id.backend_path}/state")


async def test_each_has_its_own(
    machine: Machine, config: Config, bus: KernelByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two disks, made before and after the start, ours goes on to InitWait and the other one to the kernel, which
    finds it untouched. When we stop, ours stays with nobody."""
    monkeypatch.setattr("xenbusd.arbiter.arbiter.RESYNC_S", 0.01)
    theirs = await attach(machine, bus, XVDA, STOCK)
    async with serving(machine, config, bus) as daemon:
        assert not bus.autoprobe
        ours = await attach(machine, bus, XVDA + 16, OURS)
        later = await attach(machine, bus, XVDA + 32, STOCK)
        await machine.until(ours, backend=State.INIT_WAIT)
        await bound(machine, bus, theirs.log_name)
        await bound(machine, bus, later.log_name)
        assert [await state(machine, id) for id in (theirs, later)] == [b"1", b"1"]
        assert [dev.id for dev in daemon.devices] == [ours]
    assert bus.autoprobe
    assert bus.unbound() == [ours.log_name]


async def test_kernels_own_are_left_to_it(machine: Machine, config: Config, bus: KernelByHand) -> None:
    """A disk of ours that the kernel bound while no daemon ran is not served: two backends would corrupt it."""
    bus.load_driver("vbd")
    taken = await attach(machine, bus, XVDA, OURS)
    bus.bind(taken.log_name)
    async with serving(machine, config, bus) as daemon:
        ours = await attach(machine, bus, XVDA + 16, OURS)
        await machine.until(ours, backend=State.INIT_WAIT)
        assert await state(machine, taken) == b"1"
        assert [dev.id for dev in daemon.devices] == [ours]


async def test_release_after_a_kill(machine: Machine, config: Config, bus: KernelByHand) -> None:
    """A killed daemon's changes are undone: the kernel binds by itself and gets its own devices; ours stay ours."""
    bus.switch_autoprobe(False)
    theirs = await attach(machine, bus, XVDA, STOCK)
    ours = await attach(machine, bus, XVDA + 16, OURS)
    assert await release(config, bus) == (f"Linux binds new devices by itself again; handed over: {theirs.log_name}")
    assert bus.autoprobes[-1] == "1 with vbd"
    assert bus.unbound() == [ours.log_name]
    assert (await release(config, bus)).endswith("handed over: nothing was left")


async def test_release_where_nothing_is_to_be_undone(machine: Machine, config: Config, bus: KernelByHand) -> None:
    """Out of arbiter mode, without such a kernel, and on a simulated host it does nothing and says so."""
    await attach(machine, bus, XVDA, STOCK)
    assert "by itself" in await release(config.with_overrides(arbiter=False), bus)
    assert "no backends of Linux's here" in await release(config.with_overrides(host="sim:/x"), bus)
    bus.folder.rename(bus.folder.with_name("elsewhere"))
    assert "no backends of Linux's here" in await release(config, bus)
    assert (bus.probed, bus.autoprobes) == ([], [])


async def test_release_under_a_daemon(machine: Machine, config: Config, bus: KernelByHand) -> None:
    """It is refused while a daemon serves: a device of ours would then go to the kernel."""
    async with serving(machine, config, bus):
        with pytest.raises(UsageError, match=r"control\.sock answers: stop that daemon"):
            await release(config, bus)
        assert not bus.autoprobe


async def test_release_without_a_store_or_a_driver(
    config: Config, bus: KernelByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel binds by itself before anything is asked that can fail."""
    bus.switch_autoprobe(False)
    with pytest.raises(DriverError, match="no backend driver for nothing"):
        await release(config.with_overrides(classes=("nothing",)), bus)
    assert bus.autoprobe
    bus.switch_autoprobe(False)
    monkeypatch.setattr("xenbusd.host.real.store_endpoint", lambda: unix_endpoint(str(tmp_path / "nowhere")))
    with pytest.raises(StoreLost):
        await release(config, bus)
    assert bus.autoprobe


async def test_release_with_a_silent_store(
    config: Config, bus: KernelByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that does not answer does not hold up the release."""
    monkeypatch.setattr(module, "RELEASE_S", 0.05)
    path = str(tmp_path / "silent")
    ends: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    async with await asyncio.start_unix_server(lambda _, writer: ends.put_nowait(writer), path):
        monkeypatch.setattr("xenbusd.host.real.store_endpoint", lambda: unix_endpoint(path))
        with pytest.raises(StoreLost, match="run this again"):
            await release(config, bus)
        async with asyncio.timeout(DEADLINE_S):
            end = await ends.get()  # a busy machine may accept it only now
        end.close()
        with suppress(ConnectionError):
            await end.wait_closed()


async def test_second_daemon_changes_nothing(machine: Machine, config: Config, bus: KernelByHand) -> None:
    """A daemon that may not start, because another one has the run directory, leaves the kernel as it is."""
    async with serving(machine, config, bus):
        before = list(bus.autoprobes)
        with closing(SimHost(machine.socket, DOM0)) as host, pytest.raises(UsageError, match="in use"):
            await Daemon(Side.BACKEND, host, config, bus).run()
        assert bus.autoprobes == before


@pytest.mark.parametrize(
    ("side", "host", "sentence"),
    [(Side.BACKEND, "sim:/x", "a simulated host has none"), (Side.FRONTEND, "xen", "arbiter mode is for backends")],
)
async def test_where_it_cannot_be(machine: Machine, config: Config, side: Side, host: str, sentence: str) -> None:
    """On a simulated host, and for frontends, arbiter mode is refused with a sentence."""
    with closing(SimHost(machine.socket, DOM0)) as door, pytest.raises(UsageError, match=sentence):
        await Daemon(side, door, config.with_overrides(host=host)).run()


def test_commands(tmp_path: Path) -> None:
    """`xenbusd release` succeeds on a machine without Xen; `serve --arbiter` there is status 2 and one sentence."""

    def xenbusd(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "xenbusd", *arguments, "--host", f"sim:{tmp_path}/host"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    released = xenbusd("release", "--arbiter")
    assert (released.returncode, released.stderr) == (0, "")
    assert released.stdout.startswith("nothing to release")
    sim = subprocess.Popen(
        [sys.executable, "-m", "xenbusd", "sim", "--socket", f"{tmp_path}/host"], stdout=subprocess.PIPE, text=True
    )
    with sim:
        assert sim.stdout is not None
        assert sim.stdout.readline().startswith("simulated host")
        refused = xenbusd("serve", "--arbiter")
        sim.terminate()
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "xenbusd: arbiter mode shares with Linux's own backends, and a simulated host has none: leave it out"
    ]
