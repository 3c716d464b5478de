"""Echo devices for the tests: a program in a guest that uses one, and a backend with a hand-driven frontend."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass

from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import HandRing, Machine, Peer, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.protocol import RING, Line

GUEST = Domid(5)


async def say(guest: Process, id: DeviceId, *lines: bytes) -> list[bytes]:
    """Send lines, all at once, to the echo's socket in a guest; return the answers."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_unix_connection(f"{guest.services.run_dir}/echo-{id.devid}.sock")
        with closing(writer):
            writer.write(b"".join(line + b"\n" for line in lines))
            return [(await reader.readline()).rstrip(b"\n") for _ in lines]


async def ask(ring: HandRing, *texts: bytes) -> list[bytes]:
    """Send texts through a hand-driven ring; return the answers, having checked that each answers its request."""
    answers = [Line.unpack(slot) for slot in await ring.ask(*(Line(n, text).pack() for n, text in enumerate(texts)))]
    assert [line.id for line in answers] == list(range(len(texts)))
    return [line.text for line in answers]


@dataclass
class Half:
    """An echo backend in domain 0 and, in domain 5, a frontend that does only what the test says."""

    machine: Machine
    id: DeviceId
    back: Process
    guest: Process
    peer: Peer

    @property
    def dev(self) -> BackendLife:
        """The backend's device."""
        dev = self.back.device(self.id)
        assert isinstance(dev, BackendLife)
        return dev

    async def connect(self) -> HandRing:
        """Connect, as an honest frontend does."""
        return await self.peer.connect(RING)

    async def backend(self, *states: State) -> State:
        """Wait until the backend is at one of `states`, as the frontend sees it."""
        return await self.peer.until(*states)

    def backend_states(self) -> list[str]:
        """The states that the backend wrote, in order."""
        return self.back.states(self.id, "backend")


async def half(machine: Machine, devid: int = 0) -> Half:
    """Start both domains and attach the device. It is at Initialising, or already at InitWait."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST)
    id = machine.id("echo", GUEST, devid)
    await machine.attach(id)
    return Half(machine, id, back, guest, Peer(guest, id))


async def held_by_backend(echo: Half) -> int:
    """Pages of the guest that the backend has mapped."""
    return echo.machine.holdings(GUEST).grants_mapped
