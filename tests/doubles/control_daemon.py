"""A daemon as far as its control socket needs one, with devices that are in no store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from xenbusd import log
from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.device import Device
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.ports import Ports
from xenbusd.bus.services import Services
from xenbusd.bus.state import Side
from xenbusd.control.protocol import DaemonStatus, DeviceDetails, DeviceTimeline, Event
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid

ID = DeviceId(DeviceClass("vbd"), Domid(3), Devid(51712))

STATUS = DaemonStatus(side="backend", domid=0, host="xen", pid=7, uptime_s=1.5, store_connected=True)


def services_of(run_dir: Path) -> Services:
    """The services that devices share, none of which is called."""
    return Services(
        store=cast("Any", SimpleNamespace(connected=True, reconnects=0, strays=0)),
        host=cast("Any", SimpleNamespace(name="sim:/run/host")),
        ports=Ports(cast("Any", None)),
        domid=DOM0,
        log=log.get(),
        run_dir=str(run_dir),
        state_dir=str(run_dir),
    )


@dataclass
class FakeDaemon:
    """Has devices."""

    services: Services
    side: Side = Side.BACKEND
    devices: list[Device] = field(default_factory=list)

    def add(self, id: DeviceId = ID) -> BackendLife:
        """One more device."""
        dev = BackendLife(self.services, id)
        self.devices.append(dev)
        return dev


@dataclass
class FakeProvider:
    """Gives answers of a test's choice, and reports events when the test says so."""

    known: dict[str, DeviceDetails] = field(default_factory=dict)
    timelines: dict[str, DeviceTimeline] = field(default_factory=dict)
    reports: list[Callable[[Event], None]] = field(default_factory=list)
    """One for each client that follows."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when one begins or ends."""
    asked: list[str | None] = field(default_factory=list)
    """The devices that were asked to be followed."""

    async def status(self) -> DaemonStatus:
        """Always the same."""
        return STATUS

    async def details(self, device: str) -> DeviceDetails | None:
        """Of those known."""
        return self.known.get(device)

    async def timeline(self, device: str) -> DeviceTimeline | None:
        """Of those known."""
        return self.timelines.get(device)

    @contextmanager
    def reporting(self, device: str | None, report: Callable[[Event], None]) -> Iterator[None]:
        """Keep `report` for `happen`."""
        self.asked.append(device)
        self.reports.append(report)
        self.changed.set()
        try:
            yield
        finally:
            self.reports.remove(report)
            self.changed.set()

    async def followed_by(self, count: int) -> None:
        """Wait until so many clients follow."""
        while len(self.reports) != count:
            self.changed.clear()
            await self.changed.wait()

    def happen(self, event: Event) -> None:
        """Report an event to all that follow."""
        for report in list(self.reports):
            report(event)


async def ask(path: str, *requests: object) -> Any:
    """Send requests, JSON or raw lines, on one connection; return the last reply's JSON."""
    reader, writer = await asyncio.open_unix_connection(path)
    answer: Any = None
    with closing(writer):
        for request in requests:
            line = request if isinstance(request, bytes) else json.dumps(request).encode()
            writer.write(line + b"\n")
            answer = json.loads(await reader.readline())
    return answer
