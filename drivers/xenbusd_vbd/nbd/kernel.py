"""An export attached to /dev/nbdN, so that the guest's own kernel can use the disk.

The kernel's NBD client takes one end of a socket pair. The export serves the other end like any client's, but without a
handshake, because size and flags go to the kernel by ioctl. NBD_DO_IT does not return while the device exists, so a
thread of its own makes all the calls. No request passes through that thread.

A process that serves the kernel's block device from the same machine must not itself wait for that device: keep the
daemon's own files off it.

Source: include/uapi/linux/nbd.h and drivers/block/nbd.c of Linux.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from xenbusd_vbd.nbd.errors import NbdError
from xenbusd_vbd.nbd.export import NbdExport

NBD_SET_SOCK = 0xAB00
"""_IO(0xab, 0): a connected socket's descriptor; EBUSY if another process is setting the device up (linux/nbd.h)."""
NBD_SET_BLKSIZE = 0xAB01
"""_IO(0xab, 1): the device's logical block size in bytes."""
NBD_DO_IT = 0xAB03
"""_IO(0xab, 3): run the device; returns when it has ended."""
NBD_CLEAR_SOCK = 0xAB04
"""_IO(0xab, 4): fail the requests under way and release the socket."""
NBD_SET_SIZE_BLOCKS = 0xAB07
"""_IO(0xab, 7): the device's size in blocks."""
NBD_DISCONNECT = 0xAB08
"""_IO(0xab, 8): send DISC; NBD_DO_IT returns once the server has closed the socket."""
NBD_SET_FLAGS = 0xAB0A
"""_IO(0xab, 10): the transmission flags."""

ATTACH_S = 5.0
"""Seconds that the kernel has to show the device as connected."""
DETACH_S = 5.0
"""Seconds that the kernel and the requests under way have before the socket is shut."""
POLL_S = 0.01

T = TypeVar("T")


class NbdDeviceError(NbdError):
    """No /dev/nbdN can be used; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, errno.ENODEV)


def libc_ioctl(fd: int, request: int, argument: int) -> None:
    """Call ioctl with an argument as wide as the kernel's; `fcntl.ioctl` takes 32 bits, too few for 1 TiB of sectors.

    Raises:
        OSError: the call failed.
    Blocks: as long as the kernel does, without holding Python's lock.
    """
    if _libc.ioctl(fd, request, argument) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_libc.ioctl.restype = ctypes.c_int


@dataclass(frozen=True)
class Kernel:
    """Where the kernel's NBD client is found. The defaults are the real places; a test gives others."""

    sys_block: str = "/sys/block"
    dev: str = "/dev"
    ioctl: Callable[[int, int, int], None] = libc_ioctl

    def is_connected(self, name: str) -> bool:
        """Return whether a device is in use: only then does it have a pid (drivers/block/nbd.c, pid_show)."""
        return os.path.exists(os.path.join(self.sys_block, name, "pid"))

    def has_nbd(self) -> bool:
        """Return whether the kernel has the nbd module, and so any devices."""
        return os.path.exists(os.path.join(self.sys_block, "nbd0"))

    def free(self) -> list[str]:
        """Return the names of the devices that are not in use, the lowest number first.

        Raises:
            NbdDeviceError: there are none.
        """
        try:
            names = [name for name in os.listdir(self.sys_block) if re.fullmatch(r"nbd\d+", name)]
        except OSError as error:
            raise NbdDeviceError(f"cannot list {self.sys_block}: {error.strerror}; is sysfs mounted?") from error
        if not names:
            raise NbdDeviceError("this kernel has no NBD devices: load the module first, with `modprobe nbd`")
        free = sorted((name for name in names if not self.is_connected(name)), key=lambda name: int(name[3:]))
        if not free:
            raise NbdDeviceError(
                f"all {len(names)} NBD devices are in use: detach one with `nbd-client -d`,"
                " or load the module with a higher nbds_max"
            )
        return free


class NbdDevice:
    """An export on its /dev/nbdN. Made by `attach`."""

    def __init__(self, export: NbdExport, kernel: Kernel) -> None:
        self.path = ""
        """The device node, "/dev/nbd0"."""
        self._export = export
        self._kernel = kernel
        self._loop = asyncio.get_running_loop()
        self._claimed: asyncio.Future[str] = self._loop.create_future()
        self._ended: asyncio.Future[OSError | None] = self._loop.create_future()
        self._fd = -1
        ours, self._theirs = socket.socketpair()
        try:
            export.serve(ours)
        except BaseException:
            self._theirs.close()
            raise

    @property
    def ended(self) -> asyncio.Future[OSError | None]:
        """Done when the kernel has let go of the device: with None in order, or with the kernel's error."""
        return self._ended

    @classmethod
    async def attach(cls, export: NbdExport, *, kernel: Kernel | None = None) -> NbdDevice:
        """Attach an export to the first free /dev/nbdN.

        Returns:
            The device, ready to be opened by anybody.
        Raises:
            NbdDeviceError: the module is absent, no device is free, or the kernel refuses.
        """
        kernel = kernel or Kernel()
        names = kernel.free()
        device = cls(export, kernel)
        threading.Thread(target=device._run_device, args=(names,), name="nbd", daemon=True).start()
        try:
            async with asyncio.timeout(ATTACH_S):
                name = await device._claimed
                device.path = os.path.join(kernel.dev, name)
                # sysfs sends no event for a new attribute, so this polls.
                while not kernel.is_connected(name) and not device._ended.done():  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            await device.detach()
            raise NbdDeviceError(f"the kernel did not connect {device.path or 'an NBD device'} in time") from None
        except asyncio.CancelledError:
            device._hang_up()
            raise
        if device._ended.done():
            error = device._ended.result()
            why = error.strerror if error else "it gave no reason"
            raise NbdDeviceError(f"{device.path}: the kernel gave it up at once: {why}")
        return device

    async def resize(self) -> None:
        """Set the kernel's device to the size that the export has now; programs that have it open see it at once.

        Raises:
            NbdDeviceError: the kernel refuses.
        """
        if self._fd < 0 or self._ended.done():
            return
        fd = os.dup(self._fd)
        # In a thread: a kernel may wait for requests under way, and this process answers them.
        try:
            await asyncio.to_thread(self._set_size, fd)
        except OSError as error:
            raise NbdDeviceError(f"the kernel refuses a new size of {self.path}: {error.strerror}") from error

    def _set_size(self, fd: int) -> None:
        try:
            size_bytes, block = self._export.size_bytes, self._export.block_size
            self._kernel.ioctl(fd, NBD_SET_SIZE_BLOCKS, size_bytes // block)
        finally:
            os.close(fd)

    async def detach(self, *, timeout_s: float = DETACH_S) -> None:
        """Detach the device: requests under way are answered, or fail after `timeout_s`. Idempotent.

        A program that still has the device open, or a file system on it, gets errors from here on.
        """
        if self._fd >= 0 and not self._ended.done():
            # In a thread of its own: the kernel waits here while the socket is full, and this process empties it.
            fd = os.dup(self._fd)
            threading.Thread(target=self._disconnect, args=(fd,), name="nbd-disconnect", daemon=True).start()
        if not await self._wait(timeout_s):
            self._hang_up()
            await self._wait(timeout_s)

    async def _wait(self, timeout_s: float) -> bool:
        await asyncio.wait([self._ended], timeout=timeout_s)
        return self._ended.done()

    def _hang_up(self) -> None:
        """End the device by closing the server's side, which the kernel cannot refuse."""
        with contextlib.suppress(OSError):
            self._theirs.shutdown(socket.SHUT_RDWR)

    def _disconnect(self, fd: int) -> None:
        try:
            with contextlib.suppress(OSError):
                self._kernel.ioctl(fd, NBD_DISCONNECT, 0)
        finally:
            os.close(fd)

    # In the thread.

    def _run_device(self, names: list[str]) -> None:
        # A signal would end NBD_DO_IT, and with it the device.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        error_at_end: OSError | None = None
        try:
            self._fd, name = self._claim(names)
        except NbdDeviceError as error:
            self._theirs.close()
            self._settle(self._claimed, error)
            self._settle(self._ended, None)
            return
        try:
            self._describe()
            self._settle(self._claimed, name)
            self._kernel.ioctl(self._fd, NBD_DO_IT, 0)
        except OSError as error:
            error_at_end = error
            self._settle(self._claimed, NbdDeviceError(f"the kernel refuses {name}: {error.strerror}"))
        with contextlib.suppress(OSError):
            self._kernel.ioctl(self._fd, NBD_CLEAR_SOCK, 0)
        self._theirs.close()
        self._settle(self._ended, error_at_end)

    def _claim(self, names: list[str]) -> tuple[int, str]:
        """Open the first device that takes our socket; another process may have taken a device meanwhile."""
        for name in names:
            path = os.path.join(self._kernel.dev, name)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                advice = "attaching needs root" if error.errno in (errno.EACCES, errno.EPERM) else "is udev running?"
                raise NbdDeviceError(f"cannot open {path}: {error.strerror}; {advice}") from error
            try:
                self._kernel.ioctl(fd, NBD_SET_SOCK, self._theirs.fileno())
            except OSError as error:
                os.close(fd)
                if error.errno == errno.EBUSY:
                    continue
                advice = "; attaching needs root (CAP_SYS_ADMIN)" if error.errno == errno.EPERM else ""
                raise NbdDeviceError(f"the kernel refuses our socket for {path}: {error.strerror}{advice}") from error
            return fd, name
        raise NbdDeviceError("every free NBD device was taken by another process meanwhile; try again")

    def _describe(self) -> None:
        block = self._export.block_size
        self._kernel.ioctl(self._fd, NBD_SET_BLKSIZE, block)
        self._kernel.ioctl(self._fd, NBD_SET_SIZE_BLOCKS, self._export.size_bytes // block)
        self._kernel.ioctl(self._fd, NBD_SET_FLAGS, int(self._export.flags))

    def _settle(self, future: asyncio.Future[T], outcome: T | NbdDeviceError) -> None:
        """Give a future of the event loop its outcome, once."""

        def settle() -> None:
            if future.done():
                return
            if isinstance(outcome, NbdDeviceError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
            if future is self._ended and self._fd >= 0:
                # Here, in the loop's thread, so that `detach` never sees the number of a descriptor that is closed.
                os.close(self._fd)
                self._fd = -1

        # If the loop has ended before the device, nobody waits for the future.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(settle)
