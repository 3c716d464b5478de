"""Tell systemd how we are: READY=1, STATUS=..., WATCHDOG=1. Without systemd nothing happens.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """The socket that systemd named for us, if it did.

    Args:
        environ: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s: float | None = int(usec) / 1e6 if for_us and usec.isdecimal() and int(usec) else None
        """systemd kills us after this long without a sign of life; None: it does not watch."""

    def send(self, **fields: str | int) -> None:
        """Send fields such as `READY=1, STATUS="serving"`. Never raises, never waits: a deaf systemd is no harm."""
        if not self._address:
            return
        text = "\n".join(f"{key}={str(value).replace(chr(10), ' ')}" for key, value in fields.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), self._address)

    def ready(self, status: str) -> None:
        """Say that start-up is over, and in `status` what for."""
        self.send(READY=1, STATUS=status)

    def stopping(self, status: str) -> None:
        """Say that we are ending in order."""
        self.send(STOPPING=1, STATUS=status)

    async def keep_alive(self) -> None:
        """Feed the watchdog twice per interval, from the loop whose health it is to prove; return if none watches."""
        while self.watchdog_s is not None:
            self.send(WATCHDOG=1)
            await asyncio.sleep(self.watchdog_s / 2)
