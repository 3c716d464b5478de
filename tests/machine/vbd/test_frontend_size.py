"""The disk's frontend when the size of its disk changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.disk_programs import (
    nbdinfo,
    needs_nbdinfo,
    needs_qemu_io,
    qemu_io,
)
from tests.doubles.hand_backend import SECTOR, frontend_bench
from xenbusd.bus.state import State
from xenbusd.testing import Machine
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_vbd import frontend
from xenbusd_vbd.nbd.kernel import Kernel, NbdDevice

MIB = 1 << 20


MIB = 1 << 20


@needs_nbdinfo
@needs_qemu_io
async def test_a_disk_that_grows(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """T34: a new size is there for the next client, without any step of state; a smaller one is logged as well."""
    async with frontend_bench(machine) as it:
        back = await it.connect(4 * MIB)
        assert "failed" in await qemu_io(it.guest, "write 5M 4k", status=1)
        back.data += bytes(4 * MIB)
        await back.republish(sectors=8 * MIB // SECTOR)
        await it.guest.until(lambda: any(line["event"] == "disk.grown" for line in logged))
        assert (await nbdinfo(it.guest))["export-size"] == 8 * MIB
        assert "failed" not in await qemu_io(it.guest, "write -P 3 5M 4k", "read -P 3 5M 4k")
        assert back.data[5 * MIB : 5 * MIB + 4096] == b"\x03" * 4096
        for _ in range(3):
            await back.republish(sectors=2 * MIB // SECTOR)
        await it.guest.until(lambda: any(line["event"] == "disk.shrunk" for line in logged))
        assert (await nbdinfo(it.guest))["export-size"] == 2 * MIB
        await it.guest.settle()
        assert [line["new_sectors"] for line in logged if line["event"] == "disk.shrunk"] == [4096]
        assert it.guest.states(it.peer.id, "frontend") == ["Initialising", "Initialised", "Connected"]


@pytest.mark.parametrize("value", ["many", "-1", str(1 << 60)])
async def test_a_size_that_cannot_be(machine: Machine, value: str) -> None:
    """An impossible size ends the connection, as it would have when it was first read."""
    async with frontend_bench(machine) as it:
        await it.connect()
        await it.peer.write(State.CONNECTED, sectors=value)
        assert "/sectors holds " in await it.error()


async def test_another_backend_with_another_disk(machine: Machine) -> None:
    """A backend that comes back with other abilities and another size is used as it is then, and clients find the new
    size."""
    async with frontend_bench(machine, feature_max_indirect_segments=256, options={"queues": 2}) as it:
        back = await it.connect(4 * MIB, feature_flush_cache=1)
        await it.again(multi_queue_max_queues=2, feature_max_indirect_segments=0)
        assert len(back.rings) == 0
        back = await it.connect(6 * MIB, feature_barrier=1)
        assert len(back.rings) == 2
        assert (await nbdinfo(it.guest))["export-size"] == 6 * MIB
        assert "failed" not in await qemu_io(it.guest, "write -P 1 5M 512k", "flush", "read -P 1 5M 512k")
        assert max(back.segments) == 11
        assert min(back.by_queue.values()) > 0


class OneDevice:
    """A kernel with one NBD device, which does nothing but be connected.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sys/nbd0", "dev"):
            (folder / name).mkdir(parents=True)
        (folder / "dev" / "nbd0").touch()
        self.calls: list[tuple[int, int]] = []
        self._over = threading.Event()

    def kernel(self) -> Kernel:
        """As the code under test sees it."""
        return Kernel(str(self.folder / "sys"), str(self.folder / "dev"), self.ioctl)

    def ioctl(self, fd: int, request: int, argument: int) -> None:
        """Note it; NBD_DO_IT lasts until NBD_DISCONNECT."""
        del fd
        self.calls.append((request, argument))
        pid = self.folder / "sys/nbd0/pid"
        if request == 0xAB03:
            pid.write_text("1\n")
            self._over.wait(DEADLINE_S)
            pid.unlink()
        elif request == 0xAB08:
            self._over.set()


async def test_the_kernel_s_device_grows(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/dev/nbdN gets the new size at once, also one that does not fit 32 bits, and never a smaller one."""
    device = OneDevice(tmp_path)
    monkeypatch.setattr(frontend, "Kernel", device.kernel)
    attach: Callable[..., Any] = NbdDevice.attach
    monkeypatch.setattr(NbdDevice, "attach", lambda export: attach(export, kernel=device.kernel()))

    def sizes() -> list[int]:
        return [argument for request, argument in device.calls if request == 0xAB07]

    async with frontend_bench(machine, options={"nbd_device": True}) as it:
        back = await it.connect(4 * MIB)
        assert sizes() == [8192]
        await back.republish(sectors=1 << 40)
        await it.guest.until(lambda: len(sizes()) == 2)
        await back.republish(sectors=8192)
        await back.republish(sectors=1 << 41)
        await it.guest.until(lambda: len(sizes()) == 3)
        assert sizes() == [8192, 1 << 40, 1 << 41]
        await machine.store.rm(it.peer.id.frontend_path)
        await it.guest.until(lambda: it.guest.devices == [])
    assert os.listdir(tmp_path / "sys/nbd0") == []
