"""xenbusd.bus.runtime: the parts that a runtime connects, and how it starts, fails and stops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from xenbusd import log
from xenbusd.bus.device import Device
from xenbusd.bus.driver import Backend
from xenbusd.bus.runtime import Runtime, store_window
from xenbusd.errors import StoreLost
from xenbusd.ids import DOM0, Domid


class Probe(Backend, device_class="probe"):
    """A driver of a class that no device has."""

    async def run(self, dev: Device) -> None:
        """Never called."""


class FakeStore:
    """A store whose watches are silent, or refused with an error."""

    def __init__(self) -> None:
        self.closed = False
        self.watched: list[str] = []
        self.error: Exception | None = None

    async def watch(self, path: str, **_: object) -> object:
        """Note the path."""
        self.watched.append(path)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(wait=asyncio.Event().wait, unwatch=self._unwatch, take=set)

    async def _unwatch(self) -> None:
        return


@pytest.fixture
def events() -> Iterator[int]:
    """A descriptor that is never readable, in the place of event channels."""
    reading, writing = os.pipe()
    yield reading
    os.close(writing)
    with suppress(OSError):
        os.close(reading)


def runtime(store: FakeStore, events: int, *drivers: type[Backend], **settings: Any) -> Runtime:
    """A runtime of domain 0 on a fake store."""
    host = SimpleNamespace(events=SimpleNamespace(fd=events))
    wiring: dict[str, Any] = {
        "run_dir": "/run/probe",
        "owns_run_dir": True,
        "state_dir": None,
        "options": {},
        **settings,
    }
    return Runtime(cast("Any", store), cast("Any", host), drivers, domid=DOM0, log=log.get(), **wiring)


async def test_devices_share_what_the_runtime_was_handed(events: int) -> None:
    """Store, host, domain, run directory, options and hotplug runner come from outside, untouched."""
    store, hotplug = FakeStore(), cast("Any", object())
    it = runtime(store, events, Probe, options={"probe": {"size": 4}}, hotplug=hotplug)
    services = it.services
    assert (services.store, services.domid, services.run_dir) == (store, DOM0, "/run/probe")
    assert (services.hotplug, services.options) == (hotplug, {"probe": {"size": 4}})
    assert [(scan.device_class, scan.side) for scan in it.scans] == [("probe", Probe.side)]
    assert it.devices == []


async def test_each_class_is_watched_once_it_has_started(events: int) -> None:
    """And so are the lives of domains, by the special watch."""
    store = FakeStore()
    it = runtime(store, events, Probe)
    assert store.watched == []
    it.start()
    await asyncio.sleep(0)
    assert store.watched == ["/local/domain/0/backend/probe", "@releaseDomain"]
    await it.stop()


async def test_without_drivers_only_event_channels_are_served(events: int) -> None:
    """As for a hand-driven end: the store is left alone."""
    store = FakeStore()
    it = runtime(store, events)
    it.start()
    await it.failed()  # nothing is there to fail
    assert store.watched == []
    await it.stop()


async def test_an_error_that_ends_a_scan_is_raised(events: int) -> None:
    """By `failed`, for a daemon to end; and by `stop`, for a caller that did not wait."""
    store = FakeStore()
    store.error = RuntimeError("a bug")
    it = runtime(store, events, Probe)
    it.start()
    with pytest.raises(RuntimeError, match="a bug"):
        await it.failed()
    with pytest.raises(RuntimeError, match="a bug"):
        await it.stop()
    await it.stop()


async def test_errors_that_come_of_a_closed_store_are_not_raised(events: int) -> None:
    """A process that is killed closes its store session first."""
    store = FakeStore()
    store.error = StoreLost("closed")
    it = runtime(store, events, Probe)
    it.start()
    await asyncio.sleep(0)
    store.closed = True
    await it.stop()


async def test_failed_ends_with_the_runtime(events: int) -> None:
    """A task that waits for an error does not wait for ever."""
    it = runtime(FakeStore(), events, Probe)
    it.start()
    waiting = asyncio.create_task(it.failed())
    await asyncio.sleep(0)
    await it.stop()
    await waiting


@pytest.mark.parametrize(("domid", "window"), [(0, 0), (1, 16), (7, 16)])
def test_the_window_is_the_domains(domid: int, window: int) -> None:
    """A driver domain has a guest's quota, whatever it serves."""
    assert store_window(Domid(domid)) == window
