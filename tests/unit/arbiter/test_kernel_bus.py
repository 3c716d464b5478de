"""xenbusd.arbiter.kernel_bus: reads and writes of the bus's folder in sysfs, and modprobe."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.doubles.kernel_by_hand import KernelByHand
from xenbusd.arbiter.kernel_bus import KernelBus


@pytest.fixture
def bus(tmp_path: Path) -> KernelByHand:
    """A bus whose modprobe knows vbd."""
    return KernelByHand(tmp_path, "vbd")


def test_no_such_kernel(tmp_path: Path) -> None:
    """Where there is no bus there are no devices and no drivers, and the switch cannot be turned."""
    bus = KernelBus(str(tmp_path / "nowhere"))
    assert (bus.is_there, bus.devices(), bus.drivers(), bus.driver("vbd-1-2")) == (False, [], frozenset(), None)
    assert bus.nodename("vbd-1-2") is None
    with pytest.raises(FileNotFoundError):
        _ = bus.autoprobe
    with pytest.raises(FileNotFoundError) as refused:
        bus.switch_autoprobe(True)
    assert refused.value.filename == str(tmp_path / "nowhere" / "drivers_autoprobe")


def test_autoprobe(bus: KernelByHand) -> None:
    """The switch is read and written as the kernel spells it."""
    assert bus.autoprobe
    bus.switch_autoprobe(False)
    assert (bus.folder / "drivers_autoprobe").read_text() == "0\n"
    assert not bus.autoprobe
    bus.switch_autoprobe(True)
    assert bus.autoprobe


def test_devices(bus: KernelByHand) -> None:
    """Devices are named by their bus ids, and each says where it is in the store and who has it."""
    bus.load_driver("vbd")
    bound, unbound = bus.appear("vbd", 5, 51712), bus.appear("vif", 5, 0)
    bus.bind(bound)
    assert bus.devices() == ["vbd-5-51712", "vif-5-0"]
    assert bus.unbound() == [unbound]
    assert bus.driver(bound) == "vbd"
    assert bus.nodename(bound) == "backend/vbd/5/51712"
    assert bus.drivers() == {"vbd"}


def test_bound(tmp_path: Path) -> None:
    """A driver's folder in sysfs holds its devices by their bus ids, among other files."""
    folder = tmp_path / "drivers" / "vbd"
    folder.mkdir(parents=True)
    for name in ("bind", "uevent", "vbd-4-51712", "vbd-3-51712"):
        (folder / name).touch()
    assert KernelBus(str(tmp_path)).bound("vbd") == ["vbd-3-51712", "vbd-4-51712"]
    assert KernelBus(str(tmp_path)).bound("vif") == []


def test_probe(bus: KernelByHand) -> None:
    """A device is bound if a driver for it is loaded."""
    bus_id = bus.appear("vbd", 5, 51712)
    assert not bus.probe(bus_id)
    bus.load_driver("vbd")
    assert bus.probe(bus_id)
    assert bus.probed == [bus_id, bus_id]


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL])
def test_probe_that_the_kernel_refuses(bus: KernelByHand, number: int) -> None:
    """A device that has gone (ENODEV), or whose driver fails (EINVAL), is just not bound."""
    bus_id = bus.appear("vbd", 5, 51712)
    bus.load_driver("vbd")
    bus.errno = number
    assert not bus.probe(bus_id)


def test_probe_without_the_right(bus: KernelByHand) -> None:
    """A write that is not permitted is an error."""
    bus.errno = errno.EACCES
    with pytest.raises(PermissionError, match="drivers_probe"):
        bus.probe(bus.appear("vbd", 5, 51712))


def test_failed_write_names_its_file(tmp_path: Path) -> None:
    """The kernel refuses a write, not an open; the error names the file all the same."""
    (tmp_path / "drivers_probe").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*drivers_probe"):
        KernelBus(str(tmp_path)).probe("vbd-5-51712")


async def test_load(bus: KernelByHand) -> None:
    """modprobe is asked for the alias that the kernel gives in its event; its complaint is returned."""
    assert await bus.load("vbd") is None
    assert bus.drivers() == {"vbd"}
    assert await bus.load("echo") == "modprobe: FATAL: Module xen-backend:echo not found."
    assert bus.loaded == ["xen-backend:vbd", "xen-backend:echo"]


async def test_load_without_a_word(tmp_path: Path) -> None:
    """A modprobe that fails in silence, or does not exist, is reported too."""
    silent = tmp_path / "modprobe"
    silent.write_text("#!/bin/sh\nexit 3\n")
    silent.chmod(0o755)
    assert await KernelBus(str(tmp_path), str(silent)).load("vbd") == f"{silent} exited with 3"
    missing = str(tmp_path / "nowhere")
    assert await KernelBus(str(tmp_path), missing).load("vbd") == f"{missing} cannot be run: No such file or directory"


async def test_load_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A modprobe that does not end is killed: devices wait."""
    monkeypatch.setattr("xenbusd.arbiter.kernel_bus.MODPROBE_S", 0.05)
    hanging = tmp_path / "modprobe"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    assert await KernelBus(str(tmp_path), str(hanging)).load("vbd") == (
        f"{hanging} xen-backend:vbd has not ended within 0.05 s"
    )
