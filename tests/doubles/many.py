"""A pair with several queues: a backend, a frontend, and a frontend by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.doubles.echo import GUEST
from xenbusd.api import (
    AfterCleanStop,
    Backend,
    BackendDevice,
    BackLink,
    Frontend,
    FrontendDevice,
    FrontLink,
    InOrder,
    JournalPolicy,
    unsigned,
)
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.ring.layout import RingFormat
from xenbusd.testing import Machine, Peer, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.protocol import Line

QUEUES_MAX = 4
FORMAT = RingFormat(64, Line, Line, max_order=2)


class ManyBackend(Backend, device_class="many"):
    """Answer each line with the number of the queue before it."""

    journal: JournalPolicy = InOrder()

    async def run(self, dev: BackendDevice) -> None:
        """Answer on all queues at once."""

        async def answer(number: int, link: BackLink[Line, Line]) -> None:
            async for line in link:
                link.reply(replace(line, text=b"%d:%s" % (number, line.text)))

        await dev.advertise(multi_queue_max_queues=QUEUES_MAX, size=1)
        async with (
            dev.connect_queues(FORMAT, max_queues=QUEUES_MAX, journal=self.journal) as links,
            asyncio.TaskGroup() as tasks,
        ):
            for number, link in enumerate(links):
                tasks.create_task(answer(number, link))


class HastyBackend(ManyBackend, device_class="many"):
    """A backend that does not promise to answer in order."""

    journal = AfterCleanStop()


class ManyFrontend(Frontend, device_class="many"):
    """Offer as many queues as the options say, and follow the backend's `size`."""

    links: list[FrontLink[Line, Line]]
    sizes: list[int]

    async def run(self, dev: FrontendDevice) -> None:
        """Let the test use the links."""

        async def follow() -> None:
            async for _ in dev.changes():
                self.sizes.append(await dev.otherend.read("size", unsigned()))

        await dev.backend_ready()
        queues, order = dev.options["queues"], dev.options.get("order")
        async with dev.offer_queues(FORMAT, queues=queues, order=order) as links:
            for link in links:
                link.start(link.answer)
            ManyFrontend.links, ManyFrontend.sizes = links, []
            following = asyncio.create_task(follow())
            try:
                await dev.connected()
                await dev.until_ended()
            finally:
                following.cancel()


async def texts(*answers: Any) -> list[bytes]:
    """The texts of answers that are awaited together."""
    async with asyncio.timeout(DEADLINE_S):
        return [line.text for line in await asyncio.gather(*answers)]


def call(number: int, text: bytes) -> Any:
    """Ask through one queue of the frontend."""
    return ManyFrontend.links[number].call(Line(id=0, text=text))


@asynccontextmanager
async def pair(machine: Machine, **options: Any) -> AsyncIterator[tuple[Process, Process, DeviceId]]:
    """Connect both ends; in the end, detach and see that nothing is left. Yields backend, frontend, and which."""
    await machine.start(GUEST)  # the domain lives as long as the test
    guest = await machine.start(GUEST, ManyFrontend, options={"many": options})
    back = await machine.start(DOM0, ManyBackend)
    before = await machine.snapshot()
    id = machine.id("many", GUEST)
    await machine.attach(id)
    await machine.connected(id)
    yield back, guest, id
    await machine.detach(id)
    for process in machine.processes:
        if process.alive:
            await process.settle()
    assert await machine.snapshot() == before


# -- a frontend by hand ------------------------------------------------------------------------------------------------


class Hand:
    """A frontend that offers several rings by hand.

    Args:
        peer: whose end.
        queues: how many.
    """

    def __init__(self, peer: Peer, queues: int = 2) -> None:
        self.peer = peer
        self.rings = [peer.ring(FORMAT) for _ in range(queues)]
        self.keys: dict[str, Any] = {"multi-queue-num-queues": queues}
        for number, ring in enumerate(self.rings):
            self.keys |= {f"queue-{number}/ring-ref": ring.grefs[0], f"queue-{number}/event-channel": ring.port}

    async def connect(self) -> None:
        """Go through a frontend's handshake."""
        await self.peer.until(State.INIT_WAIT)
        await self.peer.write(State.INITIALISED, **self.keys)
        await self.peer.until(State.CONNECTED)
        await self.peer.write(State.CONNECTED)

    async def leave(self) -> None:
        """Close in order."""
        await self.peer.write(State.CLOSING)
        await self.peer.until(State.CLOSING)
        await self.peer.write(State.CLOSED)
        await self.peer.until(State.CLOSED)

    def close(self) -> None:
        """Take the rings back."""
        for ring in self.rings:
            ring.close()


@asynccontextmanager
async def by_hand(machine: Machine, backend: type[Backend] = ManyBackend) -> AsyncIterator[tuple[Process, Hand]]:
    """A backend, and a frontend by hand that has offered nothing yet; in the end, nothing is mapped any more."""
    back = await machine.start(DOM0, backend)
    peer = Peer(await machine.start(GUEST), machine.id("many", GUEST))
    await machine.attach(peer.id)
    hand = Hand(peer)
    yield back, hand
    assert machine.holdings(GUEST).grants_mapped == 0
    hand.close()


def journals(process: Process) -> list[str]:
    """The journals that are in a process's run directory."""
    return sorted(path.name for path in Path(process.services.run_dir).glob("*.ring*"))
