"""The store goes away and comes back under connected devices: nothing is torn down, and missed changes are noticed."""

from __future__ import annotations

import asyncio

import pytest

from xenbusd.bus.state import State
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import Machine, Process
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend

GUEST = Domid(5)


async def lose_store(process: Process) -> None:
    """Cut a process's connection to the store, as a restarted xenstored does, and wait until it is back."""
    back = asyncio.get_running_loop().create_future()
    process.store.on_back = lambda: back.set_result(None)
    assert process.store._transport is not None
    process.store._transport.abort()
    async with asyncio.timeout(20):
        await back


@pytest.mark.parametrize("who", ["backend", "frontend", "both"])
async def test_connected_devices_outlive_their_store(machine: Machine, who: str) -> None:
    """The connection to the store is lost: states stay, lines go through, and a later detach is seen."""
    dom0 = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    losers = {"backend": [dom0], "frontend": [guest], "both": [dom0, guest]}[who]
    await asyncio.gather(*map(lose_store, losers))
    assert [process.store.reconnects for process in losers] == [1] * len(losers)
    seen = await machine.connected(id)
    assert (seen.backend, seen.frontend) == (State.CONNECTED, State.CONNECTED)
    assert dom0.states(id, "backend") == ["Initialising", "InitWait", "Connected"]
    reader, writer = await asyncio.open_unix_connection(guest.services.run_dir + "/echo-0.sock")
    writer.write(b"still there\n")
    assert await reader.readline() == b"STILL THERE\n"
    writer.close()
    await writer.wait_closed()
    await machine.detach(id)
    assert await machine.read(id.backend_path) is None


async def test_a_device_that_appears_while_the_store_is_away_is_found(machine: Machine) -> None:
    """The class watch is registered again, and fires: a pair made meanwhile connects."""
    dom0 = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    losing = [asyncio.create_task(lose_store(process)) for process in (dom0, guest)]
    await machine.attach(id)
    await asyncio.gather(*losing)
    await machine.connected(id)


async def test_a_handshake_goes_on_after_the_store_was_lost_in_it(machine: Machine) -> None:
    """Both ends lose the store at every point of a handshake that a few tries hit: each pair connects."""
    dom0 = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    for devid in range(6):
        id = machine.id("echo", devid=devid)
        await machine.attach(id)
        for _ in range(devid):
            await asyncio.sleep(0)  # let the handshake get a little further, no more than that
        await asyncio.gather(lose_store(dom0), lose_store(guest))
        await machine.connected(id)
