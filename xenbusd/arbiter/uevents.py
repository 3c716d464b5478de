"""Events of the kernel's devices, from netlink: a hint that something has happened on the bus of backend devices.

Source: linux/netlink.h (NETLINK_KOBJECT_UEVENT); Linux, lib/kobject_uevent.c.
Decision: D17.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NETLINK_KOBJECT_UEVENT = 15

KERNEL_GROUP = 1
"""The multicast group of the kernel's own messages; udev's are in group 2."""

UEVENT_BYTES = 16384
"""More than the kernel puts into one message (UEVENT_BUFFER_SIZE and a header)."""


def open_uevents() -> socket.socket:
    """Open a socket that receives the kernel's broadcast of device events.

    Raises:
        OSError: such a socket cannot be opened, as in a sandbox without AF_NETLINK.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
    try:
        sock.bind((0, KERNEL_GROUP))
    except OSError:
        sock.close()
        raise
    return sock


@contextmanager
def following(uevents: socket.socket, wake: Callable[[], object]) -> Iterator[None]:
    """In the block, call `wake` after each event of the bus; at its end close the socket.

    An event is only a hint, and any process may have sent it: `wake` must have the bus itself read.

    Args:
        uevents: from `open_uevents`.
        wake: called in a turn of the event loop, at most once for all events that have arrived.
    """
    uevents.setblocking(False)
    loop = asyncio.get_running_loop()
    loop.add_reader(uevents.fileno(), _drain, uevents, wake)
    try:
        yield
    finally:
        loop.remove_reader(uevents.fileno())
        uevents.close()


def _drain(uevents: socket.socket, wake: Callable[[], object]) -> None:
    hint = False
    for _ in range(64):  # the rest is taken in the next turn of the loop
        try:
            message = uevents.recv(UEVENT_BYTES)
        except BlockingIOError:
            break
        except OSError:  # ENOBUFS: some events were lost, perhaps the bus's
            hint = True
            break
        hint = hint or b"SUBSYSTEM=xen-backend\0" in message
    if hint:
        wake()
