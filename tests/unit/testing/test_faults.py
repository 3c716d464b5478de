"""Faults happen when they are meant to, and only then."""

from __future__ import annotations

import asyncio

import pytest

from tests.doubles.echo import GUEST, say
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.errors import StoreLost
from xenbusd.ids import DOM0
from xenbusd.testing import Faults, Machine, Process
from xenbusd.testing.faults import CALLS
from xenbusd.testing.plugin import machine
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend

__all__ = ["machine"]


async def pair(
    machine: Machine, *, back: Faults | None = None, front: Faults | None = None
) -> tuple[Process, Process, DeviceId]:
    """Start both ends, and let them come to rest."""
    backend = await machine.start(DOM0, EchoBackend, faults=back)
    frontend = await machine.start(GUEST, EchoFrontend, faults=front)
    await backend.settle()
    await frontend.settle()
    return backend, frontend, machine.id("echo")


async def test_without_faults_nothing_changes(machine: Machine) -> None:
    """A pair with unarmed faults works, and its steps, calls and writes are counted."""
    back, front = Faults(), Faults()
    _, guest, id = await pair(machine, back=back, front=front)
    back.arm()
    await machine.attach(id)
    await machine.connected(id)
    assert await say(guest, id, b"fine") == [b"FINE"]
    assert back.steps > 3
    assert not back.struck.is_set()
    assert dict(back.calls) == {"map": 1, "bind_interdomain": 1}
    assert dict(front.calls) == {"share": 1, "alloc_unbound": 1}
    assert back.written == {f"{id.backend_path}/feature-upper": b"1", f"{id.backend_path}/state": b"4"}
    assert set(CALLS) == {*back.calls, *front.calls}


async def test_a_cut_process_says_no_more(machine: Machine) -> None:
    """From its step on nothing that it asks reaches the store, and its pages and ports are given back."""
    front = Faults()
    await machine.start(GUEST)  # the domain lives on
    _, guest, id = await pair(machine, front=front)
    front.arm(cut_at=2)
    await machine.attach(id)
    async with asyncio.timeout(20):
        await front.struck.wait()
    before = await machine.nodes(id.frontend_path)
    with pytest.raises(StoreLost):
        await guest.store.write(f"{id.frontend_path}/state", "6")
    await machine.toolstack.settle()
    assert await machine.nodes(id.frontend_path) == before
    await guest.kill()
    assert machine.holdings(GUEST) == (GUEST, 1, 0, 0, 0, 0)


@pytest.mark.parametrize("call", ["map", "bind_interdomain"])
async def test_one_call_is_refused(machine: Machine, call: str) -> None:
    """The call that was meant fails, with an errno of the host's, and the next one of its kind does not."""
    back = Faults()
    _, _, id = await pair(machine, back=back)
    back.arm(refuse=call)
    await machine.attach(id)
    await machine.until(id, backend=(State.CLOSING, State.CLOSED))
    assert back.struck.is_set()
    assert b"Cannot allocate memory" in (await machine.read("/local/domain/0/error/backend/echo/5/0/error") or b"")
    await machine.detach(id)
    await machine.attach(id)
    await machine.connected(id)


async def test_the_store_is_lost(machine: Machine) -> None:
    """The connection ends at the step, and comes back by itself."""
    back = Faults()
    backend, _, id = await pair(machine, back=back)
    back.arm(lose_store_at=2)
    await machine.attach(id)
    await machine.connected(id)
    assert backend.store.reconnects == 1


async def test_a_lie_is_told(machine: Machine) -> None:
    """What is written is the lie; what was meant is known."""
    back = Faults()
    _, _, id = await pair(machine, back=back)
    path = f"{id.backend_path}/feature-upper"
    back.lies[path] = b"0"
    await machine.attach(id)
    await machine.connected(id)
    assert await machine.read(path) == b"0"
    assert back.written[path] == b"1"


async def test_a_frozen_process_holds_what_it_has(machine: Machine) -> None:
    """It asks for nothing any more, and its ring stays where it is."""
    front = Faults()
    _, _, id = await pair(machine, front=front)
    await machine.attach(id)
    await machine.connected(id)
    front.frozen = True
    await machine.ask_to_close(id)
    await machine.toolstack.settle()
    assert await machine.read(f"{id.frontend_path}/state") == b"4"
    assert machine.holdings(GUEST).grants_mapped == 1


async def test_late_hints_arrive(machine: Machine) -> None:
    """Late is not never, and twice does no harm."""
    front = Faults(seed=7)
    _, _, id = await pair(machine, front=front)
    front.late_s = 0.01
    await machine.attach(id)
    await machine.connected(id)
    await machine.detach(id)


async def test_scribbling_spares_what_is_others(machine: Machine) -> None:
    """Pages that were there before are left alone; the others are not what they were."""
    front = Faults(seed=3)
    process = await machine.start(GUEST, faults=front)
    first = process.services.host.grants.share(DOM0, 1)
    second = process.services.host.grants.share(DOM0, 1)
    for _ in range(6):
        front.scribble(0, shares_before=1)
    assert not any(first.view)
    assert any(second.view)
    first.unshare()
    front.scribble()  # what was given back is passed over
    second.unshare()
