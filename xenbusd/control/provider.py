"""The source of the control server's answers: this process's devices or, by the same protocol, those of others.

Decision: D67.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from xenbusd.bus.device import Device
from xenbusd.bus.finding import Finding
from xenbusd.bus.paths import DeviceId, parse_name
from xenbusd.bus.services import Services
from xenbusd.bus.state import Side
from xenbusd.bus.timeline import Entry
from xenbusd.control.protocol import (
    DaemonStatus,
    DeviceDetails,
    DeviceSummary,
    DeviceTimeline,
    Event,
    FindingRecord,
    TimelineEntry,
)
from xenbusd.errors import UsageError
from xenbusd.ids import Domid


class Provider(Protocol):
    """The source of a control server's answers. They may be gathered from other processes, so each one is awaited."""

    async def status(self) -> DaemonStatus:
        """The daemon and all its devices."""

    async def details(self, device: str) -> DeviceDetails | None:
        """One device that is there now; None if there is none of that name."""

    async def timeline(self, device: str) -> DeviceTimeline | None:
        """The events of a device that is or was there; None if none of that name is remembered."""

    def reporting(self, device: str | None, report: Callable[[Event], None]) -> AbstractContextManager[None]:
        """Within the block, call `report` at each event of a device, or of all if `device` is None. It does not block
        and does not raise."""


class Devices(Protocol):
    """The daemon, as far as its devices are concerned."""

    @property
    def side(self) -> Side:
        """The side that the daemon serves."""

    @property
    def devices(self) -> list[Device]:
        """Its devices that are there now."""


class OwnDevices:
    """Answers from the devices of this process.

    Args:
        daemon: has the devices.
        services: what they share.
        domid: our own domain.
    """

    def __init__(self, daemon: Devices, services: Services, domid: Domid) -> None:
        self._daemon = daemon
        self._services = services
        self._domid = domid
        self._started = time.monotonic()

    async def status(self) -> DaemonStatus:
        """See `Provider.status`."""
        return DaemonStatus(
            side=self._daemon.side.value,
            domid=self._domid,
            host=self._services.host.name,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            store_connected=self._services.store.connected,
            devices=tuple(DeviceSummary(**_summary(dev)) for dev in self._daemon.devices),
            store_reconnects=self._services.store.reconnects or None,
            store_strays=self._services.store.strays or None,
        )

    async def details(self, device: str) -> DeviceDetails | None:
        """See `Provider.details`."""
        for dev in self._daemon.devices:
            if str(dev.id) == device:
                ring = dev.details() if dev.details is not None else {}
                return DeviceDetails(
                    **_summary(dev),
                    path=dev.path,
                    otherend_path=dev.otherend.path,
                    ring=ring,
                    histograms=_histograms(dev),
                    findings=_findings(dev),
                )
        return None

    async def timeline(self, device: str) -> DeviceTimeline | None:
        """See `Provider.timeline`."""
        try:
            timeline = self._services.timelines.get(parse_name(device))
        except UsageError:
            return None
        if timeline is None:
            return None
        entries = tuple(TimelineEntry(entry.at, entry.actor, entry.event) for entry in timeline.entries)
        return DeviceTimeline(device, timeline.started_wall, entries)

    @contextmanager
    def reporting(self, device: str | None, report: Callable[[Event], None]) -> Iterator[None]:
        """See `Provider.reporting`."""

        def listener(id: DeviceId, entry: Entry) -> None:
            if device in (None, str(id)):
                report(Event(str(id), entry.at, entry.actor, entry.event))

        listeners = self._services.timelines.listeners
        listeners.add(listener)
        try:
            yield
        finally:
            listeners.discard(listener)


def _findings(dev: Device) -> tuple[FindingRecord, ...] | None:
    try:
        found = list(dev.condition())
    except Exception as error:  # a third party's code: its error must not cost the daemon's other answers
        found = [Finding("the driver", f"cannot say how it is: {error!r}")]
    return tuple(FindingRecord(finding.who, finding.what, finding.todo) for finding in found) or None


def _histograms(dev: Device) -> dict[str, Any] | None:
    shown = {name: asdict(histogram) for name, histogram in dev.counters.snapshot().histograms.items()}
    return shown or None


def _summary(dev: Device) -> dict[str, Any]:
    return {
        "device": str(dev.id),
        "side": dev.side.value,
        "state": dev.seen.own.title,
        "otherend_state": dev.seen.otherend.title,
        "waiting_for": str(dev.waiting_for or ""),
        "counters": dict(dev.counters),
    }
