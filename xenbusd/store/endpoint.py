"""Where a store is reached: a UNIX socket in dom0, a character device in a guest, a handed-over socket if simulated."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from pyxs.connection import UnixSocketConnection, XenBusConnection

from xenbusd.errors import StoreLost


@dataclass(frozen=True)
class Endpoint:
    """A place where a connection to the store can be opened, again and again.

    `open` returns a connected stream socket, or the descriptor of a character device that speaks the same bytes.
    It blocks for a moment at most, and raises `StoreLost` when no store answers there.
    """

    name: str
    """For messages: "/run/xenstored/socket"."""
    open: Callable[[], socket.socket | int]
    socket_path: str | None = None
    """The value of XENSTORED_PATH with which Xen's own tools reach the same store; None if they need no such
    setting."""
    one_at_a_time: bool = False
    """A request may be sent only once the one before it is answered. Linux sends the contents of the file's one buffer
    when its xenbus thread comes to run: a request written before that replaces the bytes behind the previous request's
    header.
    Source: linux/drivers/xen/xenbus/xenbus_xs.c, xenbus_dev_request_and_reply(): iov_base is not copied."""


def unix_endpoint(path: str | None = None) -> Endpoint:
    """xenstored's UNIX socket; without a path, the one that libxenstore and pyxs use (XENSTORED_PATH,
    XENSTORED_RUNDIR)."""
    where: str = path or UnixSocketConnection().path

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(where)
        except OSError as error:
            sock.close()
            raise StoreLost(f"no store answers at {where}: {error.strerror}; is xenstored running?") from error
        return sock

    return Endpoint(where, connect, path)


def device_endpoint(path: str | None = None) -> Endpoint:
    """The kernel's character device for the store, /dev/xen/xenbus: the only endpoint that a guest has."""
    where: str = path or XenBusConnection().path

    def connect() -> int:
        try:
            return os.open(where, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise StoreLost(f"cannot open {where}: {error.strerror}; is this a Xen domain?") from error

    return Endpoint(where, connect, one_at_a_time=True)
