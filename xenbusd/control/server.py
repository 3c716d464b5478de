"""The daemon's control socket: what only the daemon knows, for xenbusctl. One JSON object a line, each way.

Requests: {"command": "list"}, {"command": "show", "device": "vbd/3/51712"}, {"command": "timeline", "device": ...}.
Replies: {"ok": ...} or {"error": "a sentence"}.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import closing, suppress
from typing import Any, Protocol

from xenbusd.bus.device import Device, Services
from xenbusd.bus.paths import parse_name
from xenbusd.bus.state import Side
from xenbusd.bus.timeline import Timeline
from xenbusd.errors import UsageError
from xenbusd.ids import Domid
from xenbusd.process.listener import Listener

LINE_MAX = 65536
"""Bytes of a request; replies are not limited."""


class Devices(Protocol):
    """Whoever has the devices: the daemon."""

    @property
    def side(self) -> Side:
        """Which ends they are."""

    @property
    def devices(self) -> list[Device]:
        """All that are there now."""


class ControlServer:
    """Answers on a UNIX socket that only root can open.

    Args:
        daemon: whose devices are told of.
        services: what its devices share.
        domid: our own domain.
    """

    def __init__(self, daemon: Devices, services: Services, domid: Domid) -> None:
        self._daemon = daemon
        self._services = services
        self._domid = domid
        self._started = time.monotonic()
        self._server: asyncio.AbstractServer | None = None
        self._listener: Listener | None = None

    async def listen(self, path: str) -> None:
        """Begin to answer at `path`. A socket left behind is removed.

        Raises:
            UsageError: another daemon answers there.
        """
        self._listener = Listener(path)
        self._server = await asyncio.start_unix_server(self._converse, sock=self._listener.sock, limit=LINE_MAX)

    async def close(self) -> None:
        """Stop answering, and remove the socket. Idempotent."""
        if self._server is not None and self._listener is not None:
            self._server.close()
            self._listener.close()
            self._server = None

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, ValueError):
            async for line in reader:
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
            command, name = request.get("command"), request.get("device")
        except (ValueError, AttributeError, RecursionError):
            return {"error": "a request is a JSON object on one line"}
        if command == "list":
            return {"ok": {**self._about_daemon(), "devices": [self._summary(dev) for dev in self._daemon.devices]}}
        if command == "show":
            for dev in self._daemon.devices:
                if str(dev.id) == name:
                    return {"ok": self._details(dev)}
            return {"error": f"this daemon has no device {name}"}
        if command == "timeline":
            timeline = self._timeline(str(name))
            if timeline is None:
                return {"error": f"this daemon has not seen a device {name}"}
            entries = [{"at": entry.at, "actor": entry.actor, "event": entry.event} for entry in timeline.entries]
            return {"ok": {"device": name, "started": timeline.started_wall, "entries": entries}}
        return {"error": f"no command {command!r}; there are list, show and timeline"}

    def _timeline(self, name: str) -> Timeline | None:
        with suppress(UsageError):
            return self._services.timelines.get(parse_name(name))
        return None

    def _about_daemon(self) -> dict[str, object]:
        return {
            "side": self._daemon.side.value,
            "domid": self._domid,
            "host": self._services.host.name,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started, 3),
            "store_connected": self._services.store.connected,
        }

    def _summary(self, dev: Device) -> dict[str, object]:
        return {
            "device": str(dev.id),
            "side": dev.side.value,
            "state": dev.seen.own.title,
            "otherend_state": dev.seen.otherend.title,
            "waiting_for": dev.waiting_for,
            **dev.counters,
        }

    def _details(self, dev: Device) -> dict[str, Any]:
        ring = dev.details() if dev.details is not None else {}
        return {**self._summary(dev), "path": dev.path, "otherend_path": dev.otherend.path, "ring": ring}
