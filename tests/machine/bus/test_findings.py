"""Findings about a device that is not in use: the bus, the toolstack and a driver each contribute theirs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

from tests.doubles.echo import GUEST, Half
from xenbusd import toolstack
from xenbusd.api import Backend, BackendDevice, Finding, Nodes
from xenbusd.bus.finding import not_offered
from xenbusd.bus.state import State
from xenbusd.control.provider import OwnDevices
from xenbusd.ids import DOM0
from xenbusd.testing import Machine
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING


class MootBackend(Backend, device_class="echo"):
    """An echo that an administrator can silence by the key `mute`, and that tires with time."""

    tired = False

    @classmethod
    def explain(cls, nodes: Nodes) -> Iterator[Finding]:
        """Whether it was silenced can be read in the store."""
        if nodes.backend.get("mute") == b"1":
            yield Finding("the echo", "is muted", "write 0 to its key mute")

    def condition(self) -> Iterator[Finding]:
        """Whether it is tired only the running driver knows."""
        if self.tired:
            yield Finding("the echo", "is tired")

    async def run(self, dev: BackendDevice) -> None:
        """Return each line."""
        await dev.advertise(feature_upper=0)
        async with dev.connect(RING) as ring:
            self.tired = True
            async for line in ring:
                ring.reply(line)


async def nodes_of(machine: Machine, path: str) -> dict[str, bytes]:
    """A directory's nodes, by key."""
    return {name.removeprefix(path + "/"): value for name, value in (await machine.nodes(path)).items() if name != path}


async def test_bus_and_toolstack_say_the_same(machine: Machine, echo: Half) -> None:
    """The daemon and the toolstack describe a frontend that has not begun in the same words."""
    await echo.backend(State.INIT_WAIT)
    await echo.back.settle()
    expected = not_offered(GUEST, State.INITIALISING)
    assert echo.dev.waiting_for == expected
    assert toolstack.stuck(await toolstack.observe(machine.store, echo.id), echo.id) == str(expected)


async def test_a_driver_explains_from_the_store_alone(machine: Machine) -> None:
    """No daemon runs: the driver's class reads both directories."""
    id = machine.id("echo")
    await machine.start(GUEST)
    await machine.attach(id, {"mute": "1"})
    pair = await toolstack.observe(machine.store, id)
    nodes = Nodes(await nodes_of(machine, id.backend_path), await nodes_of(machine, id.frontend_path))
    assert nodes.frontend["backend"] == id.backend_path.encode()
    assert list(map(str, toolstack.explain(pair, id, nodes, MootBackend))) == [
        "the backend in domain 0 has not begun; check that `xenbusd serve` runs there, with a driver for echo",
        "the echo is muted; write 0 to its key mute",
    ]


async def test_a_living_device_has_a_condition(machine: Machine) -> None:
    """What only the running driver knows is in the answer to `show`, from the moment at which it is so."""
    back = await machine.start(DOM0, MootBackend)
    id = machine.id("echo")
    await machine.start(GUEST)
    await machine.attach(id)
    await machine.until(id, backend=State.INIT_WAIT)
    daemon = cast("Any", SimpleNamespace(devices=back.devices, side=MootBackend.side))
    provider = OwnDevices(daemon, back.services, DOM0)
    shown = await provider.details(str(id))
    assert shown is not None
    assert shown.findings is None
    await machine.start(GUEST, EchoFrontend)
    await machine.connected(id)
    shown = await provider.details(str(id))
    assert shown is not None
    assert shown.to_json()["findings"] == [{"who": "the echo", "what": "is tired", "todo": ""}]
