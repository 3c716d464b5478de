"""Several runtimes in one domain: each serves its own devices, and leaves the others' alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.doubles.echo import say
from xenbusd import log
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.runtime import Runtime
from xenbusd.host.sim.client import SimHost
from xenbusd.ids import DOM0, Domid
from xenbusd.store.client import StoreClient
from xenbusd.testing import Machine
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend

GUESTS = (Domid(5), Domid(6))


@asynccontextmanager
async def worker(machine: Machine, guest: Domid, run_dir: Path) -> AsyncIterator[Runtime]:
    """A runtime in dom0 that serves one guest's devices, with a session and a host interface of its own."""
    host = SimHost(machine.socket, DOM0)

    async def is_ours(id: DeviceId) -> bool:
        return id.frontend_domid == guest

    async with StoreClient(host.store) as store:
        runtime = Runtime(
            store,
            host,
            [EchoBackend],
            domid=DOM0,
            log=log.get().bind(worker=guest),
            run_dir=str(run_dir),
            owns_run_dir=False,
            state_dir=str(run_dir),
            options={},
            is_ours=is_ours,
        )
        runtime.start()
        try:
            yield runtime
        finally:
            await runtime.stop()
    host.close()


def journals(run_dir: Path) -> list[str]:
    """The rings' journals in a run directory."""
    return sorted(path.name for path in run_dir.iterdir() if ".ring" in path.name)


async def test_two_runtimes_serve_one_class_side_by_side(machine: Machine) -> None:
    """Each has the devices of its guest and no others, though the store shows it all of them."""
    run_dir = machine.folder / "shared"
    run_dir.mkdir()
    guests = [await machine.start(domid, EchoFrontend) for domid in GUESTS]
    ids = [machine.id("echo", domid) for domid in GUESTS]
    async with worker(machine, GUESTS[0], run_dir) as first, worker(machine, GUESTS[1], run_dir) as second:
        for id in ids:
            await machine.attach(id)
        await asyncio.gather(*map(machine.connected, ids))
        assert [dev.id for dev in first.devices] == ids[:1]
        assert [dev.id for dev in second.devices] == ids[1:]
        for guest, id in zip(guests, ids, strict=True):
            assert await say(guest, id, b"hello") == [b"HELLO"]


async def test_a_runtime_leaves_the_journals_of_others_alone(machine: Machine) -> None:
    """In a run directory that is not its alone it removes only what its own devices leave there: one that starts later,
    when another guest's device has gone from the store for it, does not take that device's journal away."""
    run_dir = machine.folder / "shared"
    run_dir.mkdir()
    stranger = run_dir / "echo-7-0.ring"
    stranger.touch()
    await machine.start(GUESTS[0], EchoFrontend)
    id = machine.id("echo", GUESTS[0])
    await machine.attach(id)
    async with worker(machine, GUESTS[0], run_dir):
        await machine.connected(id)
        assert journals(run_dir) == ["echo-5-0.ring", "echo-7-0.ring"]
        await machine.detach(id)
        assert journals(run_dir) == ["echo-7-0.ring"]


async def test_a_runtime_that_stops_leaves_the_other_s_devices_connected(machine: Machine) -> None:
    """And the one that follows it adopts the rings that it left."""
    run_dir = machine.folder / "shared"
    run_dir.mkdir()
    guests = [await machine.start(domid, EchoFrontend) for domid in GUESTS]
    ids = [machine.id("echo", domid) for domid in GUESTS]
    for id in ids:
        await machine.attach(id)
    async with worker(machine, GUESTS[1], run_dir):
        async with worker(machine, GUESTS[0], run_dir):
            await asyncio.gather(*map(machine.connected, ids))
        assert await say(guests[1], ids[1], b"meanwhile") == [b"MEANWHILE"]
        async with worker(machine, GUESTS[0], run_dir) as successor:
            assert await say(guests[0], ids[0], b"after") == [b"AFTER"]
            assert successor.services.timelines.get(ids[0]) is not None
            assert guests[0].states(ids[0], "frontend").count("Connected") == 1
