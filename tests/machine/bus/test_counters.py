"""Counters and histograms that a driver declares: filled on its data path, seen in the log and in `show`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.doubles.echo import GUEST, say
from xenbusd.api import Backend, BackendDevice, BackLink, Counter, Histogram
from xenbusd.bus.counters import HistogramSnapshot
from xenbusd.control.provider import OwnDevices
from xenbusd.ids import DOM0
from xenbusd.testing import Machine
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING, Line


class CountingBackend(Backend, device_class="echo"):
    """Returns each line, and counts its letters and its length."""

    counters = (
        Counter("letters", "letters", "in the lines that were returned"),
        Counter("refused", "lines", "that were not returned", rare=True),
        Histogram("length", "bytes", "in one line", bounds=(2, 4, 8)),
    )

    async def run(self, dev: BackendDevice) -> None:
        """As the echo, with `serve` in place of the loop over requests."""
        await dev.advertise(feature_upper=1)
        async with dev.connect(RING) as link:
            await link.serve(lambda: self._drain(link))

    @staticmethod
    def _drain(link: BackLink[Line, Line]) -> bool:
        run, count = link.ring.take()
        link.counters["requests"] += count
        for start in range(0, count * RING.slot_bytes, RING.slot_bytes):
            line = Line.unpack(run[start : start + RING.slot_bytes])
            link.counters["letters"] += sum(map(bytes.isalpha, (bytes([byte]) for byte in line.text)))
            link.histograms["length"].add(len(line.text))
            link.reply(replace(line, text=line.text.upper()))
        link.publish()
        return count > 0


async def test_a_driver_counts_what_it_declares(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """Its counter stands beside the bus's in `list`, `show` and the closing line; its histogram in `show`."""
    back = await machine.start(DOM0, CountingBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    assert await say(guest, id, b"a1", b"hello", b"what is it") == [b"A1", b"HELLO", b"WHAT IS IT"]
    dev = back.device(id)
    assert (dev.counters["requests"], dev.counters["letters"]) == (3, 14)
    length = HistogramSnapshot(bounds=(2, 4, 8), counts=(1, 0, 1, 1), total=17)
    assert dev.counters.snapshot().histograms == dev.counters.snapshot(queue=0).histograms == {"length": length}

    daemon = cast("Any", SimpleNamespace(devices=[dev], side=CountingBackend.side))
    shown = await OwnDevices(daemon, back.services, DOM0).details(str(id))
    assert shown is not None
    told = shown.to_json()
    assert (told["requests"], told["letters"]) == (3, 14)
    assert "refused" not in told
    assert told["histograms"] == {"length": {"bounds": (2, 4, 8), "counts": (1, 0, 1, 1), "total": 17}}

    await machine.detach(id)
    (closed,) = [line for line in logged if line["event"] == "device.closed" and line["domain"] == DOM0]
    assert closed["letters"] == 14
    assert "refused" not in closed


async def test_counters_go_on_over_a_reconnect(machine: Machine) -> None:
    """A frontend that comes again is counted on the same device, and on the same queue."""
    back = await machine.start(DOM0, CountingBackend)
    keeper = await machine.start(GUEST)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    assert await say(guest, id, b"one") == [b"ONE"]
    await guest.stop()
    guest = await machine.start(GUEST, EchoFrontend)
    await machine.connected(id)
    assert await say(guest, id, b"two") == [b"TWO"]
    assert back.device(id).counters["letters"] == 6
    assert back.device(id).counters.queues == [0]
    assert keeper.alive


async def test_a_name_that_was_not_declared_is_a_bug_of_the_driver(
    machine: Machine, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting under an undeclared name ends the connection with a line in the log, instead of making a new counter."""
    monkeypatch.setattr(CountingBackend, "counters", ())
    back = await machine.start(DOM0, CountingBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    assert await say(guest, id, b"one") == [b""]
    await back.until(lambda: any(line["event"] == "driver.crashed" for line in logged))
