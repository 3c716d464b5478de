"""Rings whose keys are declared by their formats: several for a queue, on one port or on several, and beside the queues
(V-rules of vif ask for all of it); and a driver's step between InitWait and the hotplug script."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import product

import pytest

from tests.doubles.echo import GUEST
from tests.doubles.netlike import NetlikeBackend, NetlikeFrontend
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.ring.layout import Raw, RingFormat
from xenbusd.testing import Machine, Peer, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.protocol import Line

CASES = list(product((1, 2), (False, True), (False, True)))


async def start(machine: Machine, queues: int, split: bool, control: bool) -> tuple[Process, Process, DeviceId]:
    """Connect both ends."""
    options = {"netlike": {"queues": queues, "split": split, "control": control}}
    await machine.start(GUEST)  # the domain lives as long as the test
    guest = await machine.start(GUEST, NetlikeFrontend, options=options)
    back = await machine.start(DOM0, NetlikeBackend)
    id = machine.id("netlike", GUEST)
    await machine.attach(id)
    await machine.connected(id)
    return back, guest, id


async def answers() -> list[bytes]:
    """The answers of all rings, asked all at once."""
    rings = NetlikeFrontend.rings
    links = [*(link for queue in rings.queues for link in queue), *(link for link in rings.beside if link)]
    async with asyncio.timeout(DEADLINE_S):
        lines = await asyncio.gather(*(link.call(Line(0, b"hello")) for link in links))
    return [line.text for line in lines]


def names(queues: int, control: bool) -> list[bytes]:
    """The answers of all rings."""
    rings = [b"%s%d" % (ring, number) for number in range(queues) for ring in (b"tx", b"rx")]
    return [ring + b":hello" for ring in [*rings, *([b"ctrl"] if control else [])]]


@pytest.mark.parametrize(("queues", "split", "control"), CASES)
async def test_each_ring_answers_for_itself(machine: Machine, queues: int, split: bool, control: bool) -> None:
    """Whatever its port, and after many events; nothing is left in the end."""
    back, guest, id = await start(machine, queues, split, control)
    for _ in range(20):
        assert await answers() == names(queues, control)
    ports = machine.holdings(GUEST).ports
    assert machine.holdings(GUEST).grants_mapped == 2 * queues + control
    assert ports == queues * (2 if split else 1) + control
    details = back.device(id).details
    assert details is not None
    told = details()
    top = {"queue-0", "queue-1"} if queues == 2 else {"tx", "rx"}
    assert set(told) == top | ({"ctrl"} if control else set())
    assert back.device(id).counters["requests"] == 20 * (2 * queues + control)
    await machine.detach(id)
    await guest.settle()
    assert machine.holdings(GUEST).grants_shared == machine.holdings(GUEST).ports == 0


@pytest.mark.parametrize(("queues", "split", "control"), CASES)
async def test_the_keys_are_netifs(machine: Machine, queues: int, split: bool, control: bool) -> None:
    """To the letter: at the top for one queue, in queue-N/ for more; the control ring always at the top."""
    _, _, id = await start(machine, queues, split, control)
    own = {"event-channel-tx", "event-channel-rx"} if split else {"event-channel"}
    one = own | {"tx-ring-ref", "rx-ring-ref"}
    keys = one if queues == 1 else {f"queue-{number}/{key}" for number in range(queues) for key in one}
    if queues == 2:
        keys |= {"multi-queue-num-queues", "queue-0", "queue-1"}
    if control:
        keys |= {"ctrl-ring-ref", "event-channel-ctrl"}
    written = {path.removeprefix(id.frontend_path + "/") for path in await machine.nodes(id.frontend_path)}
    assert written - {"backend", "backend-id", "state", id.frontend_path} == keys


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_t15_all_rings_are_adopted_together(machine: Machine, end: str, split: bool) -> None:
    """T15: each ring is adopted at its own place, whatever port it sits on; the control ring, too."""
    back, _, id = await start(machine, 2, split, True)
    assert await answers() == names(2, True)
    await (back.stop if end == "stop" else back.kill)()
    waiting = asyncio.ensure_future(answers())
    await asyncio.sleep(0)
    successor = await machine.start(DOM0, NetlikeBackend)
    assert await waiting == names(2, True)
    assert successor.states(id, "backend") == ["Connected"]


async def test_another_layout_the_next_time(machine: Machine) -> None:
    """Split ports and a control ring of an earlier agent do not belie the next one's offer."""
    id = machine.id("netlike", GUEST)
    await machine.start(DOM0, NetlikeBackend)
    await machine.start(GUEST)
    await machine.attach(id)
    for queues, split, control in ((1, True, True), (1, False, False), (2, True, True), (2, False, False)):
        options = {"netlike": {"queues": queues, "split": split, "control": control}}
        guest = await machine.start(GUEST, NetlikeFrontend, options=options)
        await machine.connected(id)
        assert await answers() == names(queues, control)
        await guest.stop()


async def test_half_a_control_ring_is_refused(machine: Machine) -> None:
    """Its port is missing: the error node names the key, and nothing stays mapped."""
    await machine.start(DOM0, NetlikeBackend)
    peer = Peer(await machine.start(GUEST), machine.id("netlike", GUEST))
    await machine.attach(peer.id)
    await peer.until(State.INIT_WAIT)
    await peer.write(State.INITIALISED, **{"tx-ring-ref": 8, "rx-ring-ref": 9, "event-channel": 1, "ctrl-ring-ref": 10})
    await peer.until(State.CLOSING)
    error = await machine.read(peer.id.error_path(NetlikeBackend.side))
    assert b"event-channel-ctrl is missing" in (error or b"nothing")
    assert machine.holdings(GUEST).grants_mapped == 0


class Scripts:
    """Runs hotplug scripts by noting how they are called, and what they find."""

    def __init__(self, machine: Machine, id: DeviceId) -> None:
        self.machine = machine
        self.id = id
        self.calls: list[tuple[str, dict[str, str], set[str]]] = []

    async def run(
        self, script: str, action: str, *, backend_path: str, device_class: str, variables: Mapping[str, str] = {}
    ) -> None:
        """Note it, and open the gate."""
        assert (script, backend_path, device_class) == ("vif-any", self.id.backend_path, "netlike")
        self.calls.append((action, dict(variables), set(NetlikeBackend.made)))
        if action == "add":
            await self.machine.write(backend_path, hotplug_status="connected")


async def test_a_step_of_the_drivers_own_before_the_script(machine: Machine) -> None:
    """`advertise(run_script=False)`, the driver's step, `run_script(name=value)`: the script finds what the driver has
    made, and gets its name; so does the script that removes it, and a reconnect runs neither."""
    id = machine.id("netlike", GUEST)
    scripts = Scripts(machine, id)
    NetlikeBackend.made.clear()
    await machine.start(GUEST)
    options = {"netlike": {"queues": 1, "split": False, "control": False}}
    await machine.start(DOM0, NetlikeBackend, hotplug=scripts)
    await machine.attach(id, {"script": "vif-any"})
    for _ in range(2):
        guest = await machine.start(GUEST, NetlikeFrontend, options=options)
        await machine.connected(id)
        assert scripts.calls == [("add", {"vif": "nl5.0"}, {"nl5.0"})]
        await guest.stop()
    await machine.detach(id)
    assert [call[:2] for call in scripts.calls] == [("add", {"vif": "nl5.0"}), ("remove", {"vif": "nl5.0"})]


@pytest.mark.parametrize("order", [None, 1])
async def test_a_hand_driven_end_uses_the_formats_keys(machine: Machine, order: int | None) -> None:
    """As a driver's offer does."""
    await machine.start(DOM0)
    peer = Peer(await machine.start(GUEST), machine.id("netlike", GUEST))
    await machine.attach(peer.id)
    form = RingFormat(64, Raw, Raw, 4, "tx-ring-ref", "event-channel-tx")
    with await peer.offer(form, order=order) as ring:
        refs = ["tx-ring-ref"] if order is None else ["tx-ring-ref0", "tx-ring-ref1"]
        offered = {**dict(zip(refs, ring.grefs, strict=True)), "event-channel-tx": ring.port}
        for key, value in offered.items():
            assert await machine.read(f"{peer.path}/{key}") == b"%d" % value
        assert await machine.read(f"{peer.path}/event-channel") is None
