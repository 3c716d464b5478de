"""A disk with both real ends on a simulated machine, used as the NBD export uses it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.doubles.echo import GUEST
from xenbusd.bus.paths import DeviceId
from xenbusd.ids import DOM0
from xenbusd.testing import Machine, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.front.ring_disk import RingDisk
from xenbusd_vbd.frontend import VbdFrontend

DEVID = 51712


class Pair:
    """A real backend and a real frontend, whose disk the test uses as the NBD export does."""

    def __init__(self, machine: Machine, back: Process, guest: Process, id: DeviceId, frontend: VbdFrontend) -> None:
        self.machine = machine
        self.back = back
        self.guest = guest
        self.id = id
        self.frontend = frontend

    @property
    def ring_disk(self) -> RingDisk:
        """The frontend's disk."""
        assert self.frontend.disk is not None
        return self.frontend.disk

    async def read(self, offset: int, length: int) -> bytes:
        """Read, and wait for it."""
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def finish(error: int, pieces: Any) -> None:
            data = b"".join(pieces)
            done.set_exception(OSError(error, os.strerror(error))) if error else done.set_result(data)

        self.ring_disk.read(offset, length, finish)
        return await done

    async def do(self, start: Callable[..., None], *arguments: Any) -> int:
        """Begin a write, flush or trim, and wait for its errno."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        start(*arguments, done.set_result)
        return await done

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> int:
        """Write, and wait for it."""
        return await self.do(self.ring_disk.write, offset, memoryview(data), fua)


@asynccontextmanager
async def pair(
    machine: Machine,
    image: Path,
    mode: str = "w",
    *,
    front: Mapping[str, Any] | None = None,
    back: Mapping[str, Any] | None = None,
) -> AsyncIterator[Pair]:
    """Connect a disk; in the end, detach it and see that nothing is left of it.

    Args:
        machine: where.
        image: what is served.
        mode: of the disk.
        front: options of the frontend's driver.
        back: options of the backend's.
    """
    frontends: list[VbdFrontend] = []

    class Listed(VbdFrontend, device_class="vbd"):
        """The real frontend, whose instances the test finds in a list."""

        def __init__(self) -> None:
            super().__init__()
            frontends.append(self)

    await machine.start(GUEST)  # the domain lives as long as the test
    guest = await machine.start(GUEST, Listed, options={"vbd": {"nbd_device": False, **(front or {})}})
    dom0 = await machine.start(DOM0, VbdBackend, options={"vbd": back or {}})
    before, files = await machine.snapshot(), os.listdir(guest.services.run_dir)
    id = machine.id("vbd", devid=DEVID)
    await machine.attach(id, {"params": str(image), "mode": mode})
    await machine.connected(id)
    async with asyncio.timeout(DEADLINE_S):
        [frontend] = frontends
        yield Pair(machine, dom0, guest, id, frontend)
    await machine.detach(id)
    for process in machine.processes:
        if process.alive:
            await process.settle()
            assert process.devices == []
    assert await machine.snapshot() == before
    assert os.listdir(guest.services.run_dir) == files
