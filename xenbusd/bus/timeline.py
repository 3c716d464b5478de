"""What each end of a pair did, and when: the raw matter of the event diagram."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import dataclass

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
    """The timelines of all devices that this process has seen, by device name, bounded."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str, Timeline] = OrderedDict()

    def start(self, name: str) -> Timeline:
        """Begin a new timeline for a device; an older one of that name is forgotten."""
        self._by_name.pop(name, None)
        timeline = self._by_name[name] = Timeline()
        while len(self._by_name) > DEVICES_MAX:
            self._by_name.popitem(last=False)
        return timeline

    def get(self, name: str) -> Timeline | None:
        """The device's last timeline, of this life or the one before."""
        return self._by_name.get(name)
