"""Event channels and the event loop: one descriptor, one handler for each port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xenbusd.host.interface import EventChannels
from xenbusd.ids import Port


class Ports:
    """Calls a handler for each pending port. The handler unmasks the port once the work is done (T61)."""

    def __init__(self, events: EventChannels) -> None:
        self.events = events
        self._handlers: dict[Port, Callable[[], None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._latest: Port | None = None

    def start(self) -> None:
        """Begin to listen on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.events.fd, self._deliver)

    def stop(self) -> None:
        """Stop listening. Idempotent."""
        if self._loop is not None:
            self._loop.remove_reader(self.events.fd)
            self._loop = None

    def attach(self, port: Port, handler: Callable[[], None]) -> None:
        """Have `handler` called, on the loop, each time `port` is pending; it must not raise."""
        self._handlers[port] = handler

    def detach(self, port: Port) -> None:
        """Forget the handler. Idempotent."""
        self._handlers.pop(port, None)

    def is_only_active(self, port: Port) -> bool:
        """Note that `port` has work now. Return whether no other port had work since this was noted last."""
        only = self._latest == port
        self._latest = port
        return only

    def _deliver(self) -> None:
        for port in self.events.pending():
            handler = self._handlers.get(port)
            if handler is not None:  # a port closed in this very turn has none, and needs no unmasking
                handler()
