"""An export on /dev/nbdN, without the kernel's module: with a stand-in for its NBD client.

The stand-in keeps the ioctls' order and does on the socket what drivers/block/nbd.c does: requests and simple replies
while NBD_DO_IT lasts, DISC on NBD_DISCONNECT, the end of NBD_DO_IT once the server has closed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from tests.doubles.memory_disk import MemoryDisk
from tests.doubles.nbd_client import until
from xenbusd_vbd.nbd import kernel as kernel_module
from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.export import NbdExport
from xenbusd_vbd.nbd.kernel import Kernel, NbdDevice, NbdDeviceError

SIZE = 1 << 20


class StandIn:
    """The kernel's NBD client, in a directory with `sys` and `dev` of its own.

    Args:
        directory: an empty one.
        devices: how many /dev/nbdN there are.
        connected: the names of those in use.
    """

    def __init__(self, directory: Path, devices: int = 2, connected: tuple[str, ...] = ()) -> None:
        self.sys, self.dev = directory / "sys", directory / "dev"
        self.sys.mkdir(parents=True)
        self.dev.mkdir()
        (self.sys / "sda").mkdir()
        for name in (f"nbd{n}" for n in range(devices)):
            (self.sys / name).mkdir()
            (self.dev / name).touch()
        for name in connected:
            (self.sys / name / "pid").write_text("1\n")
        self.calls: list[tuple[str, int, int]] = []
        self.refuse: dict[tuple[str, int], int] = {}
        """(device, ioctl) -> the errno that it fails with."""
        self.socks: dict[str, socket.socket] = {}
        self.sector = b""
        """What the device's first read, done by NBD_DO_IT, brought."""
        self.disconnects = True
        """Whether NBD_DISCONNECT does anything."""
        self.connects = True
        """Whether the device ever shows as connected."""

    @property
    def kernel(self) -> Kernel:
        """This stand-in as the code under test sees it."""
        return Kernel(str(self.sys), str(self.dev), self.ioctl)

    def ioctl(self, fd: int, request: int, argument: int) -> None:
        """Do one call, in the thread it comes from."""
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        self.calls.append((name, request, argument))
        if (name, request) in self.refuse:
            raise OSError(self.refuse[name, request], os.strerror(self.refuse[name, request]))
        if request == kernel_module.NBD_SET_SOCK:
            self.socks[name] = socket.socket(fileno=os.dup(argument))
        elif request == kernel_module.NBD_DO_IT:
            self._do_it(name)
        elif request == kernel_module.NBD_DISCONNECT and self.disconnects:
            self.socks[name].sendall(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.Command.DISC, 0, 0, 0))
        elif request == kernel_module.NBD_CLEAR_SOCK:
            self.socks.pop(name).close()

    def _do_it(self, name: str) -> None:
        sock = self.socks[name]
        sock.sendall(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.Command.READ, 77, 0, 512))
        reply = sock.recv(16 + 512, socket.MSG_WAITALL)
        assert reply[:16] == wire.simple_reply(77)
        self.sector = reply[16:]
        if self.connects:
            (self.sys / name / "pid").write_text("1\n")
        assert sock.recv(1) == b""
        (self.sys / name / "pid").unlink(missing_ok=True)

    def names(self, device: str) -> list[int]:
        """The ioctls that a device got, in order."""
        return [request for name, request, _argument in self.calls if name == device]


def export_of(disk: MemoryDisk) -> NbdExport:
    """Make an export that does not listen anywhere."""
    return NbdExport(disk, name="vbd-51712")


async def test_attach_and_detach(tmp_path: Path) -> None:
    """The calls come in the kernel's order with the export's numbers, and detach takes the device down in order."""
    kernel, disk = StandIn(tmp_path), MemoryDisk(SIZE)
    disk.data[:4] = b"disk"
    export = export_of(disk)
    device = await NbdDevice.attach(export, kernel=kernel.kernel)
    assert device.path == str(tmp_path / "dev" / "nbd0")
    assert kernel.sector[:4] == b"disk"
    await device.detach()
    assert kernel.names("nbd0") == [
        kernel_module.NBD_SET_SOCK,
        kernel_module.NBD_SET_BLKSIZE,
        kernel_module.NBD_SET_SIZE_BLOCKS,
        kernel_module.NBD_SET_FLAGS,
        kernel_module.NBD_DO_IT,
        kernel_module.NBD_DISCONNECT,
        kernel_module.NBD_CLEAR_SOCK,
    ]
    arguments = {request: argument for _name, request, argument in kernel.calls}
    assert arguments[kernel_module.NBD_SET_BLKSIZE] == 512
    assert arguments[kernel_module.NBD_SET_SIZE_BLOCKS] == SIZE // 512
    assert arguments[kernel_module.NBD_SET_FLAGS] == int(export.flags)
    assert device.ended.result() is None
    await device.detach()
    assert kernel.names("nbd0").count(kernel_module.NBD_DISCONNECT) == 1
    await export.close()


async def test_resize(tmp_path: Path) -> None:
    """The kernel gets the export's new size in blocks, as wide as it is, while NBD_DO_IT runs."""
    kernel, disk = StandIn(tmp_path), MemoryDisk(SIZE)
    export = export_of(disk)
    device = await NbdDevice.attach(export, kernel=kernel.kernel)
    disk.size_bytes = 1 << 45
    export.refresh()
    await device.resize()
    assert kernel.calls[-1] == ("nbd0", kernel_module.NBD_SET_SIZE_BLOCKS, 1 << 36)
    assert not device.ended.done()
    kernel.refuse["nbd0", kernel_module.NBD_SET_SIZE_BLOCKS] = errno.EINVAL
    with pytest.raises(NbdDeviceError, match=r"refuses a new size of .*nbd0: Invalid argument"):
        await device.resize()
    await device.detach()
    calls = len(kernel.calls)
    await device.resize()
    assert len(kernel.calls) == calls
    await export.close()


async def test_the_numbers_are_the_headers() -> None:
    """Each ioctl is _IO(0xab, n) with the n of linux/nbd.h."""
    numbers = {name: getattr(kernel_module, name) for name in dir(kernel_module) if name.startswith("NBD_")}
    assert numbers == {
        "NBD_SET_SOCK": 0xAB00,
        "NBD_SET_BLKSIZE": 0xAB01,
        "NBD_DO_IT": 0xAB03,
        "NBD_CLEAR_SOCK": 0xAB04,
        "NBD_SET_SIZE_BLOCKS": 0xAB07,
        "NBD_DISCONNECT": 0xAB08,
        "NBD_SET_FLAGS": 0xAB0A,
    }


async def test_the_first_free_device_is_taken(tmp_path: Path) -> None:
    """Devices with a pid are in use; the lowest other number is taken, counting as numbers do."""
    kernel = StandIn(tmp_path, devices=12, connected=tuple(f"nbd{n}" for n in range(9)))
    assert kernel.kernel.free() == ["nbd9", "nbd10", "nbd11"]
    export = export_of(MemoryDisk(SIZE))
    device = await NbdDevice.attach(export, kernel=kernel.kernel)
    assert device.path.endswith("/nbd9")
    await device.detach()
    await export.close()


async def test_a_device_taken_meanwhile_is_passed_over(tmp_path: Path) -> None:
    """EBUSY from NBD_SET_SOCK means that another process was quicker: its device is left alone."""
    kernel = StandIn(tmp_path)
    kernel.refuse["nbd0", kernel_module.NBD_SET_SOCK] = errno.EBUSY
    export = export_of(MemoryDisk(SIZE))
    device = await NbdDevice.attach(export, kernel=kernel.kernel)
    assert device.path.endswith("/nbd1")
    assert kernel.names("nbd0") == [kernel_module.NBD_SET_SOCK]
    await device.detach()
    await export.close()


@pytest.mark.parametrize(
    ("devices", "connected", "why"),
    [
        (0, (), "modprobe nbd"),
        (2, ("nbd0", "nbd1"), "all 2 NBD devices are in use"),
    ],
)
async def test_no_device_to_be_had(tmp_path: Path, devices: int, connected: tuple[str, ...], why: str) -> None:
    """Without the module, or without a free device, the message says what to do and nothing is left behind."""
    kernel = StandIn(tmp_path, devices, connected)
    export = export_of(MemoryDisk(SIZE))
    with pytest.raises(NbdDeviceError, match=why):
        await NbdDevice.attach(export, kernel=kernel.kernel)
    assert kernel.calls == []
    assert export.clients == 0


@pytest.mark.parametrize(
    ("request_number", "code", "why"),
    [
        (kernel_module.NBD_SET_SOCK, errno.EPERM, "needs root"),
        (kernel_module.NBD_SET_SOCK, errno.EINVAL, "refuses our socket"),
        (kernel_module.NBD_SET_BLKSIZE, errno.EINVAL, "refuses nbd0"),
        (kernel_module.NBD_DO_IT, errno.EIO, "gave it up at once|did not connect"),
    ],
)
async def test_a_kernel_that_refuses(tmp_path: Path, request_number: int, code: int, why: str) -> None:
    """A refused call becomes a sentence; the socket is cleared if it was set, and the export has no client left."""
    kernel = StandIn(tmp_path, devices=1)
    kernel.refuse["nbd0", request_number] = code
    export = export_of(MemoryDisk(SIZE))
    with pytest.raises(NbdDeviceError, match=why):
        await NbdDevice.attach(export, kernel=kernel.kernel)
    await until(lambda: export.counters["nbd_connections"] == 1 and export.clients == 0)
    cleared = kernel_module.NBD_CLEAR_SOCK in kernel.names("nbd0")
    assert cleared == (request_number != kernel_module.NBD_SET_SOCK)
    await export.close()


async def test_every_device_taken_meanwhile(tmp_path: Path) -> None:
    """If all free devices turn out taken, the message says so."""
    kernel = StandIn(tmp_path)
    for name in ("nbd0", "nbd1"):
        kernel.refuse[name, kernel_module.NBD_SET_SOCK] = errno.EBUSY
    export = export_of(MemoryDisk(SIZE))
    with pytest.raises(NbdDeviceError, match="try again"):
        await NbdDevice.attach(export, kernel=kernel.kernel)
    await export.close()


async def test_a_node_that_is_missing(tmp_path: Path) -> None:
    """A device in sysfs without its node under /dev is told apart from a missing module."""
    kernel = StandIn(tmp_path, devices=1)
    (tmp_path / "dev" / "nbd0").unlink()
    export = export_of(MemoryDisk(SIZE))
    with pytest.raises(NbdDeviceError, match=r"cannot open .*/nbd0.*udev"):
        await NbdDevice.attach(export, kernel=kernel.kernel)
    await export.close()


async def test_detach_from_a_kernel_that_does_not_listen(tmp_path: Path) -> None:
    """When NBD_DISCONNECT leads to nothing in time, the socket is shut and the device ends all the same."""
    kernel = StandIn(tmp_path)
    kernel.disconnects = False
    export = export_of(MemoryDisk(SIZE))
    device = await NbdDevice.attach(export, kernel=kernel.kernel)
    await device.detach(timeout_s=0.05)
    assert device.ended.done()
    await export.close()


def no_nbd_thread() -> bool:
    """Return whether all threads of the module have ended."""
    return not any(thread.name.startswith("nbd") for thread in threading.enumerate())


async def test_a_device_that_never_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that does not come up in time is taken down again, with a sentence."""
    monkeypatch.setattr(kernel_module, "ATTACH_S", 0.05)
    kernel = StandIn(tmp_path)
    kernel.connects = False
    export = export_of(MemoryDisk(SIZE))
    with pytest.raises(NbdDeviceError, match=r"did not connect .*nbd0 in time"):
        await NbdDevice.attach(export, kernel=kernel.kernel)
    await until(no_nbd_thread)
    assert kernel.names("nbd0")[-1] == kernel_module.NBD_CLEAR_SOCK
    await export.close()


async def test_attach_cancelled(tmp_path: Path) -> None:
    """Cancelling attach while the kernel is at it leaves no device, no thread and no client."""
    kernel = StandIn(tmp_path)
    kernel.connects = False
    export = export_of(MemoryDisk(SIZE))
    attaching = asyncio.create_task(NbdDevice.attach(export, kernel=kernel.kernel))
    await until(lambda: kernel.sector != b"")
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    await until(lambda: no_nbd_thread() and export.clients == 0)
    assert kernel.names("nbd0")[-1] == kernel_module.NBD_CLEAR_SOCK
    await export.close()


@pytest.mark.parametrize("argument", [0, 2**32, 2**63])
def test_the_real_ioctl(tmp_path: Path, argument: int) -> None:
    """The real call takes arguments of 64 bits and turns -1 into the errno; an ordinary file has no such call."""
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="ioctl") as caught:
        kernel_module.libc_ioctl(file.fileno(), kernel_module.NBD_SET_SIZE_BLOCKS, argument)
    assert caught.value.errno == errno.ENOTTY


async def test_the_export_closes_first(tmp_path: Path) -> None:
    """When the export goes, the kernel's device ends by itself, and detach has nothing to do."""
    kernel = StandIn(tmp_path)
    export = export_of(MemoryDisk(SIZE))
    device = await NbdDevice.attach(export, kernel=kernel.kernel)
    await export.close()
    await device.ended
    await device.detach()
    assert kernel_module.NBD_DISCONNECT not in kernel.names("nbd0")
    assert kernel.names("nbd0")[-1] == kernel_module.NBD_CLEAR_SOCK


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Descriptors and threads are as before, after many devices."""
    export = export_of(MemoryDisk(SIZE))
    await export.listen(str(tmp_path / "nbd"))

    async def once(directory: Path) -> int:
        kernel = StandIn(directory)
        device = await NbdDevice.attach(export, kernel=kernel.kernel)
        await device.detach()
        await until(lambda: export.clients == 0)
        await until(no_nbd_thread)
        return len(os.listdir("/proc/self/fd"))

    counts = [await once(tmp_path / f"kernel{n}") for n in range(5)]
    assert counts[1:] == counts[:-1]
    await export.close()
