"""xenbusd.control.provider: a daemon's answers about its own devices."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.doubles.control_daemon import ID, FakeDaemon, services_of
from xenbusd.bus.finding import Finding
from xenbusd.bus.state import Seen, State
from xenbusd.control.protocol import Event
from xenbusd.control.provider import OwnDevices
from xenbusd.ids import DOM0, Devid, Domid

OTHER = replace(ID, frontend_domid=Domid(4), devid=Devid(0))


@pytest.fixture
def daemon(tmp_path: Path) -> FakeDaemon:
    """A daemon without devices."""
    return FakeDaemon(services_of(tmp_path))


@pytest.fixture
def provider(daemon: FakeDaemon) -> OwnDevices:
    """The provider of its control socket."""
    return OwnDevices(daemon, daemon.services, DOM0)


async def test_the_status_of_the_daemon(provider: OwnDevices) -> None:
    """Which side of which host, since when, and whether its store is there."""
    known = (await provider.status()).to_json()
    assert known.pop("uptime_s") >= 0
    assert known == {
        "side": "backend",
        "domid": 0,
        "host": "sim:/run/host",
        "pid": os.getpid(),
        "store_connected": True,
        "devices": [],
    }


async def test_the_status_shows_trouble_with_the_store(daemon: FakeDaemon, provider: OwnDevices) -> None:
    """Once it had to connect again, or got packets that it had not asked for."""
    daemon.services.store.reconnects = 2
    known = (await provider.status()).to_json()
    assert known["store_reconnects"] == 2
    assert "store_strays" not in known


async def test_the_status_of_each_device(daemon: FakeDaemon, provider: OwnDevices) -> None:
    """Its states, what it waits for, and its counters, in the order in which they appeared."""
    dev = daemon.add()
    daemon.add(OTHER)
    dev.seen = Seen(State.INIT_WAIT, State.INITIALISING, True, "")
    dev.waiting_for = Finding("the hotplug script", "has not reported", "wait")
    dev.counters["requests"] = 7
    first, second = (await provider.status()).devices
    assert (first.device, second.device) == ("vbd/3/51712", "vbd/4/0")
    assert first.to_json() == {
        "device": "vbd/3/51712",
        "side": "backend",
        "state": "InitWait",
        "otherend_state": "Initialising",
        "waiting_for": "the hotplug script has not reported; wait",
        "requests": 7,
        "bytes": 0,
        "errors": 0,
        "notifications": 0,
    }


async def test_details_of_one(daemon: FakeDaemon, provider: OwnDevices) -> None:
    """Both directories; and, while it is connected, its ring."""
    dev = daemon.add()
    shown = await provider.details("vbd/3/51712")
    assert shown is not None
    assert (shown.path, shown.otherend_path) == (ID.backend_path, ID.frontend_path)
    assert shown.ring == {}
    dev.details = lambda: {"port": 9, "req_prod": 4}
    shown = await provider.details("vbd/3/51712")
    assert shown is not None
    assert shown.ring == {"port": 9, "req_prod": 4}


async def test_findings_of_its_driver(daemon: FakeDaemon, provider: OwnDevices) -> None:
    """They are there if the driver has some; one that fails says so, and nothing else is lost by it."""
    dev = daemon.add()
    shown = await provider.details("vbd/3/51712")
    assert shown is not None
    assert "findings" not in shown.to_json()
    dev.condition = lambda: [Finding("the tape drive", "is empty", "put a reel in")]
    shown = await provider.details("vbd/3/51712")
    assert shown is not None
    assert shown.to_json()["findings"] == [{"who": "the tape drive", "what": "is empty", "todo": "put a reel in"}]
    dev.condition = lambda: 1 / 0  # type: ignore[assignment,return-value]
    shown = await provider.details("vbd/3/51712")
    assert shown is not None
    assert shown.path == ID.backend_path
    assert shown.findings is not None
    assert "ZeroDivisionError" in shown.findings[0].what


@pytest.mark.parametrize("name", ["vbd/3/1", "", "x" * 1000])
async def test_a_device_that_is_not_there(daemon: FakeDaemon, provider: OwnDevices, name: str) -> None:
    """Nothing is known of it."""
    daemon.add()
    assert await provider.details(name) is None
    assert await provider.timeline(name) is None


async def test_a_timeline_outlives_its_device(daemon: FakeDaemon, provider: OwnDevices) -> None:
    """What each end did and when, also after the device has gone."""
    dev = daemon.add()
    dev.timeline.record("backend", "InitWait")
    dev.timeline.record("frontend", "Initialised")
    daemon.devices.clear()
    timeline = await provider.timeline("vbd/3/51712")
    assert timeline is not None
    assert (timeline.device, timeline.started) == ("vbd/3/51712", dev.timeline.started_wall)
    first, second = timeline.entries
    assert [(entry.actor, entry.event) for entry in timeline.entries] == [
        ("backend", "InitWait"),
        ("frontend", "Initialised"),
    ]
    assert first.at <= second.at


@pytest.mark.parametrize(
    ("followed", "reported"),
    [
        ("vbd/3/51712", ["vbd/3/51712"]),
        ("vbd/4/0", ["vbd/4/0"]),
        (None, ["vbd/3/51712", "vbd/4/0"]),
        ("vbd/3/1", []),
    ],
)
async def test_events_are_reported_while_they_are_followed(
    daemon: FakeDaemon, provider: OwnDevices, followed: str | None, reported: list[str]
) -> None:
    """Those of one device, or of all; of devices that come later, too; none before and none after."""
    dev = daemon.add()
    dev.timeline.record("backend", "Initialising")
    events: list[Event] = []
    with provider.reporting(followed, events.append):
        dev.timeline.record("backend", "InitWait")
        daemon.add(OTHER).timeline.record("backend", "InitWait")
    dev.timeline.record("backend", "Connected")
    assert [event.device for event in events] == reported
    assert {(event.actor, event.event) for event in events} <= {("backend", "InitWait")}


async def test_a_device_that_comes_again_is_still_followed(daemon: FakeDaemon, provider: OwnDevices) -> None:
    """A name is followed, not one life of a device."""
    events: list[Event] = []
    with provider.reporting("vbd/3/51712", events.append):
        for _ in range(2):
            daemon.add().timeline.record("backend", "Initialising")
    assert len(events) == 2
