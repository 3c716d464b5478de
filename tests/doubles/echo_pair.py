"""An echo pair that must leave nothing behind: alone, or beside a domain that attacks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.doubles.echo import GUEST, Half, say
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import Machine, Peer, Process
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend

OUR_BUGS = {"driver.crashed", "device.lost"}
"""Log events that no peer may cause."""


@asynccontextmanager
async def pair(machine: Machine) -> AsyncIterator[tuple[Process, Process, DeviceId]]:
    """Connect a pair; in the end, detach it and see that nothing is left of it."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    before, files = await machine.snapshot(), set(os.listdir(guest.services.run_dir))
    await machine.attach(id)
    await machine.connected(id)
    yield back, guest, id
    await machine.detach(id)
    for process in machine.processes:
        if process.alive:
            await process.settle()
            assert process.devices == []
    assert await machine.snapshot() == before
    assert set(os.listdir(guest.services.run_dir)) == files


# -- the frontend dies -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def beside_an_honest_pair(machine: Machine, logged: list[dict[str, Any]]) -> AsyncIterator[Half]:
    """Give a test a domain 5 to attack from, while domain 6 has an honest pair with the same backend process.

    In the end domain 5 is destroyed and its device detached by force; nothing of either is left, the honest pair works,
    its backend never moved, and nothing was logged that would be a bug of ours.
    """
    back = await machine.start(DOM0, EchoBackend)
    honest = await machine.start(Domid(6), EchoFrontend)
    other = machine.id("echo", 6)
    await machine.attach(other)
    await machine.connected(other)
    before = await machine.snapshot()
    guest = await machine.start(GUEST)
    id = machine.id("echo")
    await machine.attach(id)
    half = Half(machine, id, back, guest, Peer(guest, id))
    yield half
    assert await say(honest, other, b"undisturbed") == [b"UNDISTURBED"]
    await machine.kill(GUEST)
    await machine.until(id, backend=State.CLOSED)
    with suppress(UsageError):
        await machine.detach(id, force=True)
    await back.settle()
    assert [dev.id for dev in back.devices] == [other]
    assert await machine.snapshot() == before
    assert await say(honest, other, b"still undisturbed") == [b"STILL UNDISTURBED"]
    assert back.states(other, "backend") == ["Initialising", "InitWait", "Connected"]
    assert [line for line in logged if line["event"] in OUR_BUGS] == []
    await machine.detach(other)
