"""The timeline of a device pair: the acts of each end, with their times, as `xenbusctl timeline` draws them."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
    """One device's events, oldest first.

    Args:
        on_event: called with each event as it is recorded; it neither blocks nor raises.
    """

    __slots__ = ("_on_event", "entries", "started_wall")

    def __init__(self, on_event: Callable[[Entry], None] | None = None) -> None:
        self._on_event = on_event
        self.entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)
        self.started_wall = time.time()
        """The time at which it begins, in seconds since the epoch."""

    def record(self, actor: str, event: str) -> None:
        """Note that `actor` did `event` just now."""
        entry = Entry(time.monotonic(), actor, event)
        self.entries.append(entry)
        if self._on_event is not None:
            self._on_event(entry)


class Timelines:
    """The timelines of all devices that this process has seen, bounded by `DEVICES_MAX`."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[DeviceId, Timeline] = OrderedDict()
        self.listeners: set[Callable[[DeviceId, Entry], None]] = set()
        """Called at each event of any device; they neither block nor raise."""

    def start(self, id: DeviceId) -> Timeline:
        """Begin a new timeline for a device; its older one is forgotten."""
        self._by_id.pop(id, None)
        timeline = self._by_id[id] = Timeline(partial(self._report, id))
        while len(self._by_id) > DEVICES_MAX:
            self._by_id.popitem(last=False)
        return timeline

    def get(self, id: DeviceId) -> Timeline | None:
        """The device's timeline, of its present life or else of its last; None if none is kept."""
        return self._by_id.get(id)

    def _report(self, id: DeviceId, entry: Entry) -> None:
        for listener in tuple(self.listeners):
            listener(id, entry)
