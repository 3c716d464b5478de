"""xenbusd.arbiter.arbiter: decides which devices are ours, and hands the others over to the kernel."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from tests.doubles.kernel_by_hand import KernelByHand
from xenbusd import log
from xenbusd.arbiter import arbiter as module
from xenbusd.arbiter.arbiter import Arbiter, restore
from xenbusd.arbiter.kernel_bus import KernelBus
from xenbusd.bus.paths import DeviceId
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid
from xenbusd.registry import Claims
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.store.server import StoreServer

CLAIMS = Claims({DeviceClass("vbd"): "block-xenbusd", DeviceClass("echo"): None})
OURS, STOCK = "/etc/xen/scripts/block-xenbusd", "/etc/xen/scripts/block"
XVDA = 51712


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StoreServer]:
    """A store."""
    server = StoreServer()
    await server.listen(str(tmp_path / "store"))
    yield server
    await server.close()


@pytest.fixture
def bus(tmp_path: Path) -> KernelByHand:
    """A kernel with drivers for vbd, vif and pci, none of them loaded."""
    return KernelByHand(tmp_path, "vbd", "vif", "pci")


@pytest.fixture
async def arbiter(server: StoreServer, bus: KernelByHand, tmp_path: Path) -> AsyncIterator[Arbiter]:
    """An arbiter of vbd and echo that has not begun."""
    assert not server.exists("/local/domain/0/backend")
    async with StoreClient(unix_endpoint(str(tmp_path / "store"))) as store:
        yield Arbiter(bus, store, DOM0, CLAIMS, log.get())


def attach(
    server: StoreServer, bus: KernelByHand, device_class: str, devid: int, script: str | None = None, state: int = 1
) -> str:
    """Make a device of domain 5 in the store, as xl does, and on the kernel's bus. Return its bus id."""
    path = f"/local/domain/0/backend/{device_class}/5/{devid}"
    if script is not None:
        server.write(f"{path}/script", script)
    server.write(f"{path}/state", str(state))
    return bus.appear(device_class, 5, devid)


def device(device_class: str, devid: int) -> DeviceId:
    """A device of domain 5."""
    return DeviceId(DeviceClass(device_class), Domid(5), Devid(devid), DOM0)


async def test_every_class_that_is_not_ours_is_handed_over(
    arbiter: Arbiter, server: StoreServer, bus: KernelByHand
) -> None:
    """A stock disk, a network interface and a PCI device go to the kernel, each after its driver was loaded, once; our
    disk and our own class do not."""
    theirs = {attach(server, bus, "vbd", XVDA + 16, STOCK), attach(server, bus, "vbd", XVDA + 32)}
    theirs |= {attach(server, bus, "vif", 0, "/etc/xen/scripts/vif-bridge"), attach(server, bus, "pci", 0)}
    ours = {attach(server, bus, "vbd", XVDA, OURS), attach(server, bus, "echo", 0)}
    assert set(await arbiter.settle()) == theirs
    assert set(bus.unbound()) == ours
    assert not ours & set(bus.probed)
    assert sorted(bus.loaded) == ["xen-backend:pci", "xen-backend:vbd", "xen-backend:vif"]
    assert await arbiter.settle() == []


async def test_a_device_that_has_a_backend_is_left_alone(
    arbiter: Arbiter, server: StoreServer, bus: KernelByHand
) -> None:
    """Only a device at Initialising has no backend yet: one beyond that, or without a directory, is not probed."""
    for state in range(2, 9):
        attach(server, bus, "vbd", XVDA + state, STOCK, state)
    bus.appear("vbd", 6, XVDA)
    assert await arbiter.settle() == []
    assert bus.probed == []


async def test_the_scripts_name_decides_whose_device_it_is(
    arbiter: Arbiter, server: StoreServer, bus: KernelByHand
) -> None:
    """T67: the script's name decides, wherever it is; for a class that Linux does not have it does not matter; a class
    that we do not serve is not ours."""
    scripts = {
        "block-xenbusd": True, OURS: True, "/opt/block-xenbusd": True, STOCK: False, "": False,
        "/etc/xen/scripts/block-xenbusd/": False, "block-xenbusd2": False,
    }  # fmt: skip
    for number, (script, ours) in enumerate(scripts.items()):
        attach(server, bus, "vbd", number, script)
        assert await arbiter.is_ours(device("vbd", number)) == ours, script
    attach(server, bus, "echo", 0, STOCK)
    assert await arbiter.is_ours(device("echo", 0))
    attach(server, bus, "vif", 0, OURS)
    assert not await arbiter.is_ours(device("vif", 0))


async def test_device_that_the_kernel_had_first(arbiter: Arbiter, server: StoreServer, bus: KernelByHand) -> None:
    """A device that the kernel has bound stays the kernel's, even if its script is ours; that is logged once."""
    bus.load_driver("vbd")
    bus_id = attach(server, bus, "vbd", XVDA, OURS)
    bus.bind(bus_id)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            assert not await arbiter.is_ours(device("vbd", XVDA))
            await arbiter.settle()
    assert [line["event"] for line in lines] == ["device.taken"]
    bus.vanish(bus_id)
    await arbiter.settle()
    assert await arbiter.is_ours(device("vbd", XVDA))


async def test_class_that_nobody_serves(arbiter: Arbiter, server: StoreServer, bus: KernelByHand) -> None:
    """A class without any driver, such as guests' consoles, is logged once; its devices are tried again when another
    driver has been loaded."""
    devices = {attach(server, bus, "console", 0), attach(server, bus, "console", 1)}
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            assert await arbiter.settle() == []
    assert [(line["event"], line["log_level"]) for line in lines] == [("class.unserved", "info")]
    assert bus.loaded == ["xen-backend:console"] * 2
    bus.load_driver("console")
    assert set(await arbiter.settle()) == devices


async def test_module_that_is_kept_away(arbiter: Arbiter, server: StoreServer, tmp_path: Path) -> None:
    """If exclusive mode's blacklist was left in place, each disk without a driver is logged, with what to do."""
    bus = arbiter.bus = KernelByHand(tmp_path / "blacklisted")
    bus_id = attach(server, bus, "vbd", XVDA, STOCK)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            assert await arbiter.settle() == []
    assert [(line["event"], line["device"]) for line in lines] == [("device.unserved", bus_id)]
    assert "not found" in lines[0]["error"]
    assert "modprobe.d" in lines[0]["todo"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENODEV])
async def test_refused_device_harms_no_other(
    arbiter: Arbiter, server: StoreServer, bus: KernelByHand, number: int
) -> None:
    """A driver that fails, and a device that goes while it is handed over, are logged; the next one is handed over."""
    refused = attach(server, bus, "vbd", XVDA, STOCK)
    bus.errno = number
    with structlog.testing.capture_logs() as lines:
        assert await arbiter.settle() == []
    assert [(line["event"], line["device"]) for line in lines] == [("device.unserved", refused)]
    bus.errno = 0
    other = attach(server, bus, "vif", 0)
    assert other in await arbiter.settle()


async def test_error_of_the_bus_is_logged_and_survived(
    arbiter: Arbiter, server: StoreServer, bus: KernelByHand
) -> None:
    """A write that is not permitted does not end the arbiter."""
    attach(server, bus, "vbd", XVDA, STOCK)
    bus.errno = errno.EACCES
    with structlog.testing.capture_logs() as lines:
        assert await arbiter.settle() == []
    assert "Permission denied" in lines[0]["error"]


async def test_name_that_is_too_long_for_linux(arbiter: Arbiter, server: StoreServer) -> None:
    """Linux makes no device with a name of over 19 characters: one of ours is served, any other one is logged."""
    long = DeviceId(DeviceClass("vbd"), Domid(32751), Devid(4294967295), DOM0)
    assert len(long.log_name) == 20
    server.write(f"{long.backend_path}/script", STOCK)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            assert not await arbiter.is_ours(long)
            await arbiter.settle()
    assert [line["event"] for line in lines] == ["device.unserved"]
    server.write(f"{long.backend_path}/script", OURS)
    assert await arbiter.is_ours(long)


async def running(arbiter: Arbiter, *, until: Callable[[], bool], hints: bool = True) -> None:
    """Run the arbiter until a condition holds, with the kernel's events or without."""
    task = asyncio.create_task(arbiter.run())
    try:
        async with asyncio.timeout(20):
            while not until():
                if hints:
                    arbiter.wake()
                await asyncio.sleep(0)
                assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_device_that_appears_late(arbiter: Arbiter, server: StoreServer, bus: KernelByHand) -> None:
    """The kernel's device appears some time after the directory, and is handed over then."""
    server.write(f"/local/domain/0/backend/vbd/5/{XVDA}/state", "1")
    assert await arbiter.settle() == []
    bus_id = bus.appear("vbd", 5, XVDA)
    await running(arbiter, until=lambda: bus.driver(bus_id) == "vbd")


async def test_no_hint_is_needed(
    arbiter: Arbiter, server: StoreServer, bus: KernelByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel's events, the next check of the whole bus finds the device."""
    monkeypatch.setattr(module, "RESYNC_S", 0.01)

    def refused() -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(module, "open_uevents", refused)
    with structlog.testing.capture_logs() as lines:
        bus_id = bus.appear("vbd", 5, XVDA)  # its directory appears only after the first check
        asyncio.get_running_loop().call_later(0.05, server.write, f"/local/domain/0/backend/vbd/5/{XVDA}/state", "1")
        async with arbiter.arbitrating():
            await running(arbiter, until=lambda: bus.driver(bus_id) == "vbd", hints=False)
    assert "uevents.refused" in [line["event"] for line in lines]


async def test_switch_is_held(arbiter: Arbiter, bus: KernelByHand) -> None:
    """If somebody switches autoprobe on while we arbitrate, it is switched off again, and logged."""
    async with arbiter.arbitrating():
        assert not bus.autoprobe
        bus.switch_autoprobe(True)
        with structlog.testing.capture_logs() as lines:
            await running(arbiter, until=lambda: not bus.autoprobe)
        assert "autoprobe.changed" in [line["event"] for line in lines]
    assert bus.autoprobe


async def test_end_hands_over_the_rest_and_keeps_ours(arbiter: Arbiter, server: StoreServer, bus: KernelByHand) -> None:
    """At the end the kernel binds by itself again and gets its own devices. Their drivers are loaded before that:
    otherwise our connected disk and our new one would be bound, too."""
    async with arbiter.arbitrating():
        connected = attach(server, bus, "vbd", XVDA, OURS, 4)
        new = attach(server, bus, "vbd", XVDA + 16, OURS)
        theirs = attach(server, bus, "vif", 0)
    assert bus.autoprobes == ["0 with no driver", "0 with no driver", "1 with vbd vif"]
    assert bus.probed == [theirs]
    assert bus.unbound() == [connected, new]


async def test_end_without_a_store(
    arbiter: Arbiter, server: StoreServer, bus: KernelByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the store has gone, nobody knows which devices are ours; the kernel still binds new devices by itself."""
    monkeypatch.setattr(module, "RELEASE_S", 0.05)
    with structlog.testing.capture_logs() as lines:
        async with arbiter.arbitrating():
            bus_id = attach(server, bus, "vbd", XVDA, STOCK)
            await server.close()
    assert "arbiter.late" in [line["event"] for line in lines]
    assert bus.autoprobe
    assert bus.unbound() == [bus_id]


async def test_after_an_error(arbiter: Arbiter, bus: KernelByHand) -> None:
    """A daemon that ends by an error leaves the kernel as it was, too."""
    with pytest.raises(RuntimeError):
        async with arbiter.arbitrating():
            raise RuntimeError
    assert bus.autoprobe


async def test_restore_twice(bus: KernelByHand) -> None:
    """`restore` without an arbiter before it changes nothing; even then no driver is loaded while the kernel binds by
    itself."""
    for device_class in ("vbd", "vif"):
        bus.appear(device_class, 5, 0)
        await restore(bus)
        assert bus.autoprobe
    assert bus.autoprobes == ["0 with no driver", "1 with vbd", "0 with vbd", "1 with vbd vif"]


async def test_where_there_is_no_such_kernel(tmp_path: Path, arbiter: Arbiter) -> None:
    """Without such a kernel, `arbitrating` and `restore` say what is missing and what to do."""
    arbiter.bus = KernelBus(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"needs a Xen host's kernel and root: cannot write .*drivers_autoprobe"):
        async with arbiter.arbitrating():
            pass
    with pytest.raises(UsageError, match="Linux's own backends stay off"):
        await restore(arbiter.bus)
