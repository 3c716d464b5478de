"""xenbusd.arbiter.uevents: which of the kernel's events wake the arbiter."""

from __future__ import annotations

import asyncio
import errno
import socket

from xenbusd.arbiter.uevents import following, open_uevents


def uevent(subsystem: str) -> bytes:
    """A message as the kernel sends it."""
    fields = [f"add@/devices/x-1-2\0ACTION=add\0DEVPATH=/devices/x-1-2\0SUBSYSTEM={subsystem}\0", "SEQNUM=4711\0"]
    return "".join(fields).encode()


async def test_uevents_of_the_bus_wake() -> None:
    """An event of the bus wakes, one of another subsystem does not; the socket is closed at the end."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    woken = asyncio.Event()
    with kernels, following(ours, woken.set):
        kernels.send(uevent("block"))
        kernels.send(uevent("xen"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not woken.is_set()
        kernels.send(uevent("xen-backend"))
        async with asyncio.timeout(10):
            await woken.wait()
    assert ours.fileno() == -1


class Overrun:
    """A socket whose buffer was too small."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recv(self, size_bytes: int) -> bytes:
        """Take what has arrived, and say that some was lost."""
        self._sock.recv(size_bytes)
        raise OSError(errno.ENOBUFS, "No buffer space available")

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


async def test_lost_uevents_wake() -> None:
    """After lost events the bus is checked: they may have been the bus's."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    woken = asyncio.Event()
    with kernels, following(Overrun(ours), woken.set):  # type: ignore[arg-type]
        kernels.send(uevent("block"))
        async with asyncio.timeout(10):
            await woken.wait()


def test_anybody_may_listen_to_the_kernels_broadcast() -> None:
    """The socket is in the kernel's own multicast group, and needs no rights."""
    with open_uevents() as sock:
        assert sock.getsockname()[1] == 1
