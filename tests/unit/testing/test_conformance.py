"""The conformance check finds each fault in a pair that has it.

That it passes pairs without fault is shown by tests/machine/bus/test_conformance.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

from tests.doubles.echo import say
from xenbusd.api import Backend, BackendDevice, Frontend, FrontendDevice, Share, boolean
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side
from xenbusd.testing import Process, trial
from xenbusd.testing.checks import malice
from xenbusd.testing.conformance import PairConformance
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING

one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])
"""What the check finds does not depend on the loop."""


class Echo(PairConformance):
    """A pair that conforms; those below have one fault each."""

    backend: ClassVar[type[Backend]] = EchoBackend
    frontend: ClassVar[type[Frontend]] = EchoFrontend
    readme = Path(__file__).parents[3] / "drivers/xenbusd_echo/README.md"

    async def use(self, guest: Process, id: DeviceId) -> None:
        """Send a line."""
        assert await say(guest, id, b"hello") == [b"HELLO"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the deadlines: the faulty pairs never reach the awaited state."""
    monkeypatch.setattr(trial, "DEADLINE_S", 0.3)
    monkeypatch.setattr(malice, "SEEDS", range(8))


@one_loop
async def test_a_grant_that_is_kept() -> None:
    """Pages that stay granted after a detach are left over."""
    kept: list[Share] = []

    class Hoarder(EchoFrontend, device_class="echo"):
        async def run(self, dev: FrontendDevice) -> None:
            kept.append(dev._device.services.host.grants.share(dev.otherend.domid, 1))
            await super().run(dev)

    class Hoarding(Echo):
        frontend = Hoarder

    with pytest.raises(AssertionError, match=r"this is left: .*grants_shared=2"):
        await Hoarding().test_connects_works_and_leaves_nothing()


@one_loop
async def test_a_task_that_goes_on() -> None:
    """A task that outlives its connection is left over."""
    tasks: list[asyncio.Task[bool]] = []

    class Straggler(EchoBackend, device_class="echo"):
        async def run(self, dev: BackendDevice) -> None:
            tasks.append(asyncio.create_task(asyncio.Event().wait()))
            await super().run(dev)

    class Straggling(Echo):
        backend = Straggler

    with pytest.raises(AssertionError, match=r"this is left: .*tasks in Event.wait"):
        await Straggling().test_connects_works_and_leaves_nothing()
    for task in tasks:
        task.cancel()


@one_loop
async def test_a_file_that_stays(tmp_path: Path) -> None:
    """A descriptor that is never closed is left over."""
    files = []

    class Opener(EchoBackend, device_class="echo"):
        async def run(self, dev: BackendDevice) -> None:
            files.append((tmp_path / "log").open("w"))
            await super().run(dev)

    class Opening(Echo):
        backend = Opener

    with pytest.raises(AssertionError, match=r"this is left: .*descriptors of"):
        await Opening().test_connects_works_and_leaves_nothing()
    for file in files:
        file.close()


@one_loop
@pytest.mark.parametrize(
    ("advertised", "complaint"),
    [({"feature_upper": 1, "feature_secret": 1}, "not documented: feature-secret"), ({}, "not written: feature-upper")],
)
async def test_a_table_of_keys_that_is_not_true(advertised: dict[str, int], complaint: str) -> None:
    """A key that the README does not have, and one that only the README has, are both named."""

    class Other(EchoBackend, device_class="echo"):
        async def run(self, dev: BackendDevice) -> None:
            await dev.advertise(**advertised)
            async with dev.connect(RING) as ring:
                async for line in ring:
                    ring.reply(line)

    class Othering(Echo):
        backend = Other

        async def use(self, guest: Process, id: DeviceId) -> None:
            assert (await say(guest, id, b"hello"))[0].lower() == b"hello"

    with pytest.raises(AssertionError, match=complaint):
        await Othering().test_keys_are_those_of_the_readme()


@one_loop
async def test_a_backend_that_a_guest_can_crash() -> None:
    """A request that makes a backend raise what it did not mean to is found by noise in the pages."""

    class Naive(EchoBackend, device_class="echo"):
        async def run(self, dev: BackendDevice) -> None:
            await dev.advertise(feature_upper=1)
            async with dev.connect(RING) as ring:
                async for line in ring:
                    line.text.decode("ascii")
                    ring.reply(type(line)(line.id, line.text.upper()))

    class Believing(Echo):
        backend = Naive

    with pytest.raises(AssertionError):
        await Believing().test_hostile_pages_harm_nobody(Side.FRONTEND)


@one_loop
async def test_a_frontend_that_its_backend_can_crash() -> None:
    """A key that is believed unread is found by rubbish in the keys."""

    class Naive(EchoFrontend, device_class="echo"):
        async def run(self, dev: FrontendDevice) -> None:
            await dev.backend_ready()
            int(await dev._device.store.read(f"{dev.otherend.path}/feature-upper"))
            await super().run(dev)

    class Believing(Echo):
        frontend = Naive

    with pytest.raises(AssertionError):
        await Believing().test_hostile_keys_harm_nobody(Side.BACKEND)


@one_loop
async def test_a_pair_that_only_connects() -> None:
    """A pair whose ends are Connected and do nothing fails its first use."""

    class Idle(Backend, device_class="echo"):
        async def run(self, dev: BackendDevice) -> None:
            await dev.advertise(feature_upper=1)
            await dev.otherend.read("request-upper", boolean, default=False)
            async with dev.connect(RING):
                await dev.until_ended()

    class Idling(Echo):
        backend = Idle

        async def use(self, guest: Process, id: DeviceId) -> None:
            try:
                async with asyncio.timeout(0.2):
                    await super().use(guest, id)
            except TimeoutError:
                raise AssertionError("no answer") from None

    with pytest.raises(AssertionError, match="no answer"):
        await Idling().test_connects_works_and_leaves_nothing()


@one_loop
async def test_a_driver_that_is_not_installed() -> None:
    """A class without entry points, or with another driver's, gets the hint to install the package."""

    class NotInstalled(EchoBackend, device_class="echo"):
        pass

    class Missing(Echo):
        backend = NotInstalled

    with pytest.raises(AssertionError, match="install the package"):
        await Missing().test_is_found_by_its_entry_points()
