"""What a driver may use of a device, its links and pages: the guide's table is exactly what is public."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.doubles.control_daemon import ID, services_of
from tests.doubles.events import FakePorts
from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.channel import Channel
from xenbusd.bus.counters import COMMON, Tally
from xenbusd.bus.driver import Backend, Frontend
from xenbusd.bus.finding import Finding
from xenbusd.bus.frontend import FrontendDevice
from xenbusd.bus.frontend_life import FrontendLife
from xenbusd.bus.link import BackLink, FrontLink
from xenbusd.bus.page import BackPage, PageLink
from xenbusd.bus.state import Seen
from xenbusd.errors import OtherendTimeout
from xenbusd.ids import Port
from xenbusd.ring.layout import Raw, RingFormat

GUIDE = Path(__file__).parents[3] / "docs/writing-a-driver.md"
FORMAT = RingFormat(64, Raw, Raw)


def listed(*objects: str) -> set[str]:
    """The names that the guide's table has for some of its rows."""
    rows = dict(re.findall(r"^\| ((?:`dev|`ring`|page|class)[^|]*?) \| ([^|]*) \|$", GUIDE.read_text(), re.M))
    return {name for each in objects for name in re.findall(r"`(\w+)`", rows[each])}


def public(instance: object) -> set[str]:
    """The public names of an instance."""
    return {name for name in dir(instance) if not name.startswith("_")}


def made(tmp_path: Path) -> dict[str, object]:
    """One of each."""
    services = services_of(tmp_path)
    anything: Any = SimpleNamespace(size=4, details=None)
    channel = Channel(FakePorts(), Port(7), Tally(COMMON), lambda _: None)
    link = (anything, anything, anything, channel, anything, FORMAT, lambda: None)
    page = (anything, anything, memoryview(b""), channel, anything, lambda: None)
    return {
        "`dev` of a backend": BackendDevice(BackendLife(services, ID)),
        "`dev` of a frontend": FrontendDevice(FrontendLife(services, ID)),
        "`ring` of a backend": BackLink(*link),
        "`ring` of a frontend": FrontLink(*link),
        "page of a backend": BackPage(*page, anything),
        "page, both ends": PageLink(*page),
    }


@pytest.mark.parametrize(
    "row",
    [
        "`dev` of a backend",
        "`dev` of a frontend",
        "`ring` of a backend",
        "`ring` of a frontend",
        "page of a backend",
        "page, both ends",
    ],
)
async def test_the_guide_lists_what_is_public(tmp_path: Path, row: str) -> None:
    """A name more is a promise that nobody has made; a name less breaks drivers: API_VERSION."""
    both = row.split()[0].rstrip(",") + ", both ends"
    instance = made(tmp_path)[row]
    assert public(instance) == listed(both, row)


@pytest.mark.parametrize("row", ["`dev.own`", "`dev.otherend`"])
async def test_the_guide_lists_what_a_directory_has(tmp_path: Path, row: str) -> None:
    """A driver reads keys, each with its type; sessions with the store and the deaths of domains are the bus's."""
    dev = BackendDevice(BackendLife(services_of(tmp_path), ID))
    assert public({"`dev.own`": dev.own, "`dev.otherend`": dev.otherend}[row]) == listed(row)


class AnyBackend(Backend, device_class="any"):
    """A driver's class."""

    async def run(self, dev: BackendDevice) -> None:
        """Nothing."""


class AnyFrontend(Frontend, device_class="any"):
    """Another."""

    async def run(self, dev: FrontendDevice) -> None:
        """Nothing."""


def test_the_guide_lists_what_a_class_declares() -> None:
    """Those of a backend are more, for the resource is its own."""
    assert public(AnyBackend) == listed("class, both ends", "class of a backend")
    assert public(AnyFrontend) == listed("class, both ends")


async def test_a_step_says_what_it_waits_for(tmp_path: Path) -> None:
    """A Finding is no answer: it is shown until the next one, and named by the deadline's error."""
    shown: list[Finding | None] = []
    steps: list[Finding | str] = [Finding("the script", "has not run"), Finding("the guest", "has not come"), "done"]

    class Life(BackendLife):
        async def observe(self) -> Seen:
            shown.append(self.waiting_for)
            return self.seen

    life = Life(services_of(tmp_path), ID)

    def step(_: Seen) -> Finding | str:
        asyncio.get_running_loop().call_soon(life.wake)
        return steps.pop(0)

    findings = list(steps[:2])
    assert await life.until(step) == "done"
    assert shown == [None, *findings]
    assert life.waiting_for is None
    with pytest.raises(OtherendTimeout, match="the guest has not come after 0 s"):
        await life.until(lambda _: Finding("the guest", "has not come"), deadline_s=0)


async def test_the_directory_of_state_is_the_hosts(tmp_path: Path) -> None:
    """A simulated host has one of its own."""
    services = services_of(tmp_path)
    dev = BackendDevice(BackendLife(services, ID))
    assert dev.state_dir("/var/lib/any") == f"{tmp_path}/vbd"
    services.state_dir = None
    assert dev.state_dir("/var/lib/any") == "/var/lib/any"
