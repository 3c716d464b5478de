"""What each end of a pair did, and when: the events that `xenbusctl timeline` draws."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from xenbusd.bus.paths import DeviceId

ENTRIES_MAX = 64
"""Events kept for one device; a frontend that toggles its state cannot grow it."""

DEVICES_MAX = 1024
"""Timelines kept, those of closed devices included; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. `actor` is "hotplug", "backend" or "frontend"; `at` is seconds of the monotonic clock."""

    at: float
    actor: str
    event: str


class Timeline:
    """One device's events, oldest first."""

    __slots__ = ("entries", "started_wall")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)
        self.started_wall = time.time()
        """Seconds since the epoch at which it begins."""

    def record(self, actor: str, event: str) -> None:
        """Note that `actor` did `event` just now."""
        self.entries.append(Entry(time.monotonic(), actor, event))


class Timelines:
    """The timelines of all devices that this process has seen, bounded by `DEVICES_MAX`."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[DeviceId, Timeline] = OrderedDict()

    def start(self, id: DeviceId) -> Timeline:
        """Begin a new timeline for a device; its older one is forgotten."""
        self._by_id.pop(id, None)
        timeline = self._by_id[id] = Timeline()
        while len(self._by_id) > DEVICES_MAX:
            self._by_id.popitem(last=False)
        return timeline

    def get(self, id: DeviceId) -> Timeline | None:
        """The device's timeline, of its present life or else of its last; None if none is kept."""
        return self._by_id.get(id)
