"""xenbusd.bus.timeline: records what each end did and when, in bounded memory."""

from __future__ import annotations

import time

import pytest

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.timeline import DEVICES_MAX, ENTRIES_MAX, Entry, Timeline, Timelines
from xenbusd.ids import DeviceClass, Devid, Domid


def device(number: int, backend: int = 0) -> DeviceId:
    """A disk of domain 3."""
    return DeviceId(DeviceClass("vbd"), Domid(3), Devid(number), Domid(backend))


def test_events_are_kept_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its actor and its moment on the monotonic clock."""
    clock = iter([1.5, 2.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    line = Timeline()
    line.record("backend", "InitWait")
    line.record("frontend", "Initialised")
    assert list(line.entries) == [Entry(1.5, "backend", "InitWait"), Entry(2.5, "frontend", "Initialised")]


def test_a_timeline_knows_when_it_began() -> None:
    """In seconds since the epoch, for people."""
    before = time.time()
    assert before <= Timeline().started_wall <= time.time()


def test_a_frontend_that_toggles_cannot_grow_a_timeline() -> None:
    """XSA-349: the newest events are kept, and no more of them."""
    line = Timeline()
    for number in range(ENTRIES_MAX + 5):
        line.record("frontend", str(number))
    assert [entry.event for entry in line.entries] == [str(number) for number in range(5, ENTRIES_MAX + 5)]


def test_a_device_that_comes_again_begins_anew() -> None:
    """The timeline of its life before is forgotten."""
    lines = Timelines()
    first = lines.start(device(1))
    first.record("backend", "InitWait")
    second = lines.start(device(1))
    assert lines.get(device(1)) is second
    assert not second.entries


def test_a_closed_devices_timeline_can_still_be_asked_for() -> None:
    """It stays until others push it out; a device never seen has none."""
    lines = Timelines()
    line = lines.start(device(1))
    assert lines.get(device(1)) is line
    assert lines.get(device(2)) is None


def test_devices_of_two_backend_domains_are_two() -> None:
    """Though all else about them is the same."""
    lines = Timelines()
    here, there = lines.start(device(1)), lines.start(device(1, backend=7))
    assert lines.get(device(1)) is here
    assert lines.get(device(1, backend=7)) is there


def test_the_oldest_timelines_go_first() -> None:
    """A guest that makes devices without end costs no more memory; one that came again counts as young."""
    lines = Timelines()
    for number in range(DEVICES_MAX):
        lines.start(device(number))
    lines.start(device(0))
    lines.start(device(DEVICES_MAX))
    assert lines.get(device(1)) is None
    assert lines.get(device(0)) is not None
    assert lines.get(device(2)) is not None
    assert lines.get(device(DEVICES_MAX)) is not None


def test_listeners_get_each_event_as_it_is_recorded() -> None:
    """With the device; in each of its lives; those that listen at that moment."""
    lines = Timelines()
    heard: list[tuple[DeviceId, str]] = []

    def listener(id: DeviceId, entry: Entry) -> None:
        heard.append((id, entry.event))

    first = lines.start(device(1))
    lines.listeners.add(listener)
    first.record("backend", "InitWait")
    lines.start(device(1)).record("backend", "Initialising")
    lines.listeners.discard(listener)
    first.record("backend", "Connected")
    assert heard == [(device(1), "InitWait"), (device(1), "Initialising")]
