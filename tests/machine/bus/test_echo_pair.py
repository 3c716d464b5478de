"""The echo pair on a simulated machine: it works, ends in order from either side, and outlives its processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import GUEST, say
from tests.doubles.echo_pair import OUR_BUGS, pair
from xenbusd.bus.state import State
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0
from xenbusd.testing import Machine
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend

ONCE = ["InitWait", "Connected", "Closing", "Closed"]
"""What a backend goes through in one connection."""


# -- the honest pair ---------------------------------------------------------------------------------------------------


async def test_the_happy_path(machine: Machine) -> None:
    """Attach, send lines, detach: each end goes through the states of the 2006 paper, and nothing is left."""
    async with pair(machine) as (back, guest, id):
        assert await say(guest, id, b"one", b"two", b"") == [b"ONE", b"TWO", b""]
    assert back.states(id, "backend") == ["Initialising", *ONCE]
    assert guest.states(id, "frontend") == ["Initialising", "Initialised", "Connected", "Closing", "Closed"]


async def test_many_programs_at_once(machine: Machine) -> None:
    """More programs than the ring has slots send lines at once, and each gets its own answers, in order."""
    async with pair(machine) as (_, guest, id):
        programs = [[b"program %d line %d" % (program, line) for line in range(5)] for program in range(70)]
        answers = await asyncio.gather(*(say(guest, id, *lines) for lines in programs))
        assert answers == [[line.upper() for line in lines] for lines in programs]


async def test_an_attached_device_cannot_be_attached_again(machine: Machine) -> None:
    """A second attach is refused, and harms neither the pair nor the store."""
    async with pair(machine) as (_, guest, id):
        nodes = await machine.nodes(id.backend_path)
        with pytest.raises(UsageError, match="there is a device echo/5/0 already"):
            await machine.attach(id)
        assert await machine.nodes(id.backend_path) == nodes
        assert await say(guest, id, b"fine") == [b"FINE"]


async def test_several_devices_of_one_domain(machine: Machine) -> None:
    """Ten devices of one class connect at once and are told apart."""
    async with pair(machine) as (_, guest, first):
        ids = [machine.id("echo", devid=devid) for devid in range(1, 11)]
        for id in ids:
            await machine.attach(id)
        await asyncio.gather(*map(machine.connected, ids))
        answers = await asyncio.gather(*(say(guest, id, b"device %d" % id.devid) for id in ids))
        assert answers == [[b"DEVICE %d" % id.devid] for id in ids]
        await asyncio.gather(*map(machine.detach, ids))
        assert await say(guest, first, b"and the first") == [b"AND THE FIRST"]


async def test_the_frontend_s_process_ends_and_another_takes_over(machine: Machine) -> None:
    """An agent that is stopped closes in order; the device stays, for `online` is 1, and the next agent connects."""
    async with pair(machine) as (back, guest, id):
        keeper = await machine.start(GUEST)  # the domain lives on
        await guest.stop()
        await machine.until(id, backend=State.CLOSED, frontend=State.CLOSED)
        second = await machine.start(GUEST, EchoFrontend)
        await machine.connected(id)
        assert await say(second, id, b"second") == [b"SECOND"]
        await keeper.stop()
    assert back.states(id, "backend") == ["Initialising", *ONCE, *ONCE]


async def test_the_backend_s_process_ends_and_another_takes_over(machine: Machine) -> None:
    """A backend daemon that is stopped leaves its pairs connected; lines sent meanwhile are answered by the next one,
    and the frontend never sees a state change."""
    async with pair(machine) as (back, guest, id):
        assert await say(guest, id, b"first") == [b"FIRST"]
        await back.stop()
        meanwhile = asyncio.create_task(say(guest, id, b"mean", b"while"))
        await guest.settle()
        await machine.start(DOM0, EchoBackend)
        assert await meanwhile == [b"MEAN", b"WHILE"]
        assert guest.states(id, "backend")[-1] == "Connected"
        assert guest.states(id, "frontend") == ["Initialising", "Initialised", "Connected"]


async def test_many_pairs_are_handed_over_at_once(machine: Machine) -> None:
    """A backend daemon that is stopped begins nothing new on its way out: the next one adopts each of its pairs, and a
    frontend daemon's pairs stay Closed.
    """
    back = await machine.start(DOM0, EchoBackend)
    keeper = await machine.start(GUEST)  # the domain lives on
    guest = await machine.start(GUEST, EchoFrontend)
    ids = [machine.id("echo", devid=devid) for devid in range(24)]
    for id in ids:
        await machine.attach(id)
    await asyncio.gather(*map(machine.connected, ids))
    await back.stop()
    successor = await machine.start(DOM0, EchoBackend)
    answers = await asyncio.gather(*(say(guest, id, b"next") for id in ids))
    assert answers == [[b"NEXT"]] * len(ids)
    assert [successor.states(id, "backend") for id in ids] == [["Connected"]] * len(ids)
    await guest.stop()
    assert await asyncio.gather(*(machine.read(f"{id.frontend_path}/state") for id in ids)) == [b"6"] * len(ids)
    assert machine.holdings(GUEST) == (GUEST, 1, 0, 0, 0, 0)
    assert keeper.alive


async def test_nothing_begins_in_a_daemon_that_stops(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """A device that appears while the daemon stops is left for the next one, untouched."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    first, late = machine.id("echo"), machine.id("echo", devid=1)
    await machine.attach(first)
    await machine.connected(first)
    for scan in back.runtime.scans:
        await scan.supervisor.stop()
    await machine.attach(late)
    await back.settle()
    assert await machine.read(f"{late.backend_path}/state") == b"1"
    await back.stop()
    assert [line for line in logged if line["event"] in OUR_BUGS] == []
    await machine.start(DOM0, EchoBackend)
    await machine.connected(late)
    assert await say(guest, first, b"first") == [b"FIRST"]
    assert await say(guest, late, b"late") == [b"LATE"]


async def test_the_backend_s_process_is_killed_and_another_takes_over(machine: Machine) -> None:
    """A backend daemon that is killed leaves rings that cannot be trusted: the next one has the pair begin again."""
    async with pair(machine) as (back, guest, id):
        assert await say(guest, id, b"first") == [b"FIRST"]
        await back.kill()
        await machine.start(DOM0, EchoBackend)
        await guest.until(lambda: guest.states(id, "frontend").count("Connected") == 2)
        assert await say(guest, id, b"second") == [b"SECOND"]


async def test_a_device_that_goes_while_no_backend_runs_leaves_nothing(machine: Machine) -> None:
    """The toolstack removes a device after its backend daemon was killed: the next one removes the ring's journal."""
    back = await machine.start(DOM0, EchoBackend)
    await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    run_dir = Path(back.services.run_dir)
    journal = run_dir / f"{id.log_name}.ring"
    assert journal.exists()
    await back.kill()
    others = [run_dir / "echo-99-0.ring", run_dir / "other-99-0.ring", run_dir / "echo-98-0.ring.txt"]
    for path in others:
        path.touch()
    await machine.store.rm(id.backend_path)
    successor = await machine.start(DOM0, EchoBackend)
    await successor.settle()
    assert [path.name for path in [journal, *others] if path.exists()] == [path.name for path in others[1:]]


async def test_a_waiting_program_gets_an_error_when_the_device_goes(machine: Machine) -> None:
    """A line in the ring when the backend goes for good ends with its connection; the program is not left hanging."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    await back.kill()
    waiting = asyncio.create_task(say(guest, id, b"anybody?"))
    await guest.settle()
    await machine.store.rm(id.backend_path)
    assert await waiting == [b""]
    await machine.until(id, frontend=State.CLOSED)
