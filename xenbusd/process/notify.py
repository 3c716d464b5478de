"""Messages to systemd about the state of this process: READY=1, STATUS=..., WATCHDOG=1. Without systemd none is sent.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """The socket that systemd listens on for this process, if there is one.

    Args:
        environ: the environment, with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID if systemd started this process.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s: float | None = int(usec) / 1e6 if for_us and usec.isdecimal() and int(usec) else None
        """The watchdog's interval: systemd kills this process after that time without a message; None: no watchdog."""

    def send(self, **fields: str | int) -> None:
        """Send fields such as `READY=1, STATUS="serving"`. Never raises and never blocks; a message may be lost."""
        if not self._address:
            return
        text = "\n".join(f"{key}={str(value).replace(chr(10), ' ')}" for key, value in fields.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), self._address)

    def ready(self, status: str) -> None:
        """Report that start-up is complete; `status` is shown by `systemctl status`."""
        self.send(READY=1, STATUS=status)

    def stopping(self, status: str) -> None:
        """Report that this process is ending in order."""
        self.send(STOPPING=1, STATUS=status)

    async def keep_alive(self) -> None:
        """Send to the watchdog twice in each interval, from the event loop that it watches. Without one, return."""
        while self.watchdog_s is not None:
            self.send(WATCHDOG=1)
            await asyncio.sleep(self.watchdog_s / 2)
