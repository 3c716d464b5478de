"""xenbusd.process.notify: the messages that systemd gets, read from a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenbusd.process.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def test_ready_and_stopping(systemd: socket.socket) -> None:
    """READY and STOPPING are each sent as one datagram, together with the status."""
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    notifier.ready("serving 2 classes")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=serving 2 classes"
    notifier.stopping("asked to")
    assert systemd.recv(4096) == b"STOPPING=1\nSTATUS=asked to"


def test_a_line_break_cannot_add_a_field(systemd: socket.socket) -> None:
    """A status with a line break in it stays one field."""
    Notifier({"NOTIFY_SOCKET": systemd.getsockname()}).ready("a\nMAINPID=1")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=a MAINPID=1"


def test_abstract_address() -> None:
    """An address that starts with @ is in the abstract name space."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0xenbusd-test-{os.getpid()}")
        sock.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@xenbusd-test-{os.getpid()}"}).ready("x")
        assert sock.recv(4096) == b"READY=1\nSTATUS=x"


def test_nobody_listens(tmp_path: Path) -> None:
    """Without systemd, or after its end, sending does nothing."""
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


def test_a_full_socket_does_not_block(systemd: socket.socket) -> None:
    """If systemd does not read, sending does not block."""
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    for _ in range(4096):
        notifier.send(WATCHDOG=1)
    assert systemd.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval(environ: dict[str, str], watchdog_s: float | None) -> None:
    """The interval is taken only when it is a number and meant for this process."""
    assert Notifier(environ).watchdog_s == watchdog_s


async def test_keep_alive_feeds_the_watchdog(systemd: socket.socket) -> None:
    """The watchdog gets messages until the task is cancelled."""
    systemd.setblocking(False)
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "2000"})
    task = asyncio.create_task(notifier.keep_alive())
    for _ in range(3):
        assert await asyncio.get_running_loop().sock_recv(systemd, 4096) == b"WATCHDOG=1"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_keep_alive_without_a_watchdog_returns() -> None:
    """Without a watchdog the task ends by itself."""
    await Notifier({}).keep_alive()
