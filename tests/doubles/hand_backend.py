"""A vbd backend driven by hand: a disk in memory with whatever keys a test wants. It takes slots apart straight from
the tables of rules T30 and T31, and not with the code under test."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tests.doubles.disk_pair import DEVID
from tests.doubles.echo import GUEST
from xenbusd.bus.state import Side, State
from xenbusd.host import interface
from xenbusd.ids import DOM0, Gref, Port
from xenbusd.ring.shared import BackRing
from xenbusd.testing import Machine, Peer, Process
from xenbusd_vbd.frontend import VbdFrontend

READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT = 0, 1, 2, 3, 5, 6
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
SLOT, PAGE, SECTOR = 112, 4096, 512

Segment = tuple[int, int, int]
"""gref, first and last sector."""


class HandBackend:
    """The backend's end of a disk, made by `connect`.

    Args:
        peer: whose end.
        size_bytes: of the disk.
    """

    def __init__(self, peer: Peer, size_bytes: int) -> None:
        self.peer = peer
        self.data = bytearray(size_bytes)
        self.refused: set[int] = set()
        """Operations that it does not know."""
        self.seen: list[tuple[int, int, int]] = []
        """Operation, first sector, and number of sectors of each request."""
        self.segments: list[int] = []
        """How many segments each read or write had."""
        self.by_queue: Counter[int] = Counter()
        self.rings: list[BackRing] = []
        self.order: int | None = None
        self._ports: list[Port] = []
        self._pages: dict[int, interface.Mapping] = {}
        self._mappings: list[interface.Mapping] = []

    @classmethod
    async def connect(cls, peer: Peer, size_bytes: int, **published: int) -> HandBackend:
        """Accept the frontend's offer and go to Connected, with the disk's keys and others; serve from `data`."""
        self = cls(peer, size_bytes)
        await peer.until(State.INITIALISED)
        order = await peer.read("ring-page-order")
        self.order = None if order is None else int(order)
        names = ["ring-ref"] if order is None else [f"ring-ref{page}" for page in range(1 << int(order))]
        count = int(await peer.read("multi-queue-num-queues") or 1)
        for number in range(count):
            prefix = f"queue-{number}/" if count > 1 else ""
            await self._open(number, prefix, names)
        values: dict[str, int] = {"sectors": size_bytes // SECTOR, "info": 0, "sector_size": SECTOR, **published}
        await peer.write(State.CONNECTED, **values)
        return self

    async def _open(self, number: int, prefix: str, names: Iterable[str]) -> None:
        host, domid = self.peer.process.host, self.peer.otherend_domid
        grefs = [Gref(await self._number(prefix + name)) for name in names]
        mapping = host.grants.map(domid, grefs)
        self._mappings.append(mapping)
        ring = BackRing(mapping.view, SLOT)
        self.rings.append(ring)
        port = host.events.bind_interdomain(domid, Port(await self._number(prefix + "event-channel")))
        self._ports.append(port)
        self.peer.process.services.ports.attach(port, lambda: self._serve(number))
        self._serve(number)

    async def _number(self, key: str) -> int:
        value = await self.peer.read(key)
        assert value is not None, key
        return int(value)

    def _serve(self, number: int) -> None:
        ring, events, port = self.rings[number], self.peer.process.host.events, self._ports[number]
        count = 1
        while count or not ring.rest():
            run, count = ring.take()
            self.by_queue[number] += count
            for at in range(0, count * SLOT, SLOT):
                ring.put(self._answer(run[at : at + SLOT]))
            if ring.publish():
                events.notify(port)
        events.unmask(port)

    def _answer(self, slot: bytes) -> bytes:
        op, inner = slot[0], slot[1]
        (id,) = struct.unpack_from("<Q", slot, 8)
        answered = inner if op == INDIRECT else op
        return struct.pack("<QBxh4x", id, answered, EOPNOTSUPP if op in self.refused else self._do(op, slot))

    def _do(self, op: int, slot: bytes) -> int:
        (sector,) = struct.unpack_from("<Q", slot, 16)
        if op == DISCARD:
            (sectors,) = struct.unpack_from("<Q", slot, 24)
            self.seen.append((op, sector, sectors))
            self.data[sector * SECTOR : (sector + sectors) * SECTOR] = bytes(sectors * SECTOR)
            return OKAY
        segments = self._indirect(slot) if op == INDIRECT else self._direct(slot)
        op = slot[1] if op == INDIRECT else op
        sectors = sum(last - first + 1 for _, first, last in segments)
        self.seen.append((op, sector, sectors))
        if (sector + sectors) * SECTOR > len(self.data):
            return ERROR
        if op in (READ, WRITE):
            self.segments.append(len(segments))
        at = sector * SECTOR
        for gref, first, last in segments:
            page, length = self._page(gref), (last - first + 1) * SECTOR
            start = first * SECTOR
            if op == READ:
                page[start : start + length] = self.data[at : at + length]
            else:
                self.data[at : at + length] = page[start : start + length]
            at += length
        return OKAY

    def _direct(self, slot: bytes) -> list[Segment]:
        return [struct.unpack_from("<IBB", slot, 24 + 8 * number) for number in range(slot[1])]

    def _indirect(self, slot: bytes) -> list[Segment]:
        (count,) = struct.unpack_from("<H", slot, 2)
        (gref,) = struct.unpack_from("<I", slot, 28)
        page = self._page(gref)
        return [struct.unpack_from("<IBB", page, 8 * number) for number in range(count)]

    def _page(self, gref: int) -> memoryview:
        if gref not in self._pages:
            grants = self.peer.process.host.grants
            self._pages[gref] = grants.map(self.peer.otherend_domid, [Gref(gref)])
        return self._pages[gref].view

    @property
    def pages_mapped(self) -> int:
        """Data pages that it has seen."""
        return len(self._pages)

    async def republish(self, **values: int) -> None:
        """Write keys, and the state with the value that it has (T34)."""
        await self.peer.write(State.CONNECTED, **values)

    async def leave(self) -> None:
        """Close in order, from the backend's side."""
        await self.peer.write(State.CLOSING)
        await self.peer.until(State.CLOSING, State.CLOSED)
        await self.peer.until(State.CLOSED)
        self.close()
        await self.peer.write(State.CLOSED)

    def close(self) -> None:
        """Let go of rings, ports and pages. Idempotent."""
        host = self.peer.process.host
        for port in self._ports:
            self.peer.process.services.ports.detach(port)
            host.events.unbind(port)
        for ring in self.rings:
            ring.release()
        for mapping in [*self._mappings, *self._pages.values()]:
            mapping.unmap()
        self._ports, self.rings, self._mappings, self._pages = [], [], [], {}


class FrontendBench:
    """A guest with a real frontend, and a backend that does only what the test says."""

    def __init__(self, machine: Machine, guest: Process, peer: Peer) -> None:
        self.machine = machine
        self.guest = guest
        self.peer = peer
        self.back: HandBackend | None = None

    async def connect(self, size_bytes: int = 4 << 20, **published: int) -> HandBackend:
        """Go through a backend's handshake, with these keys beside the required ones."""
        back = self.back = await HandBackend.connect(self.peer, size_bytes, **published)
        await self.peer.until(State.CONNECTED)
        return back

    async def again(self, **offered: int) -> None:
        """Close in order, and come back to InitWait."""
        assert self.back is not None
        await self.back.leave()
        await self.peer.until(State.INITIALISING)
        await self.peer.write(State.INIT_WAIT, **offered)

    async def error(self) -> str:
        """Wait until the frontend has closed; return what it has left in its error node."""
        await self.peer.until(State.CLOSING, State.CLOSED)
        node = await self.machine.read(self.peer.id.error_path(Side.FRONTEND))
        return (node or b"nothing").decode()


@asynccontextmanager
async def frontend_bench(
    machine: Machine, *, options: Mapping[str, Any] | None = None, **offered: int
) -> AsyncIterator[FrontendBench]:
    """A real frontend, and a backend at InitWait that has published the keys `offered`."""
    id = machine.id("vbd", devid=DEVID)
    dom0 = await machine.start(DOM0)
    guest = await machine.start(GUEST, VbdFrontend, options={"vbd": {"nbd_device": False, **(options or {})}})
    await machine.attach(id)
    bench = FrontendBench(machine, guest, Peer(dom0, id, Side.BACKEND))
    await bench.peer.write(State.INIT_WAIT, **offered)
    yield bench
    if bench.back is not None:
        bench.back.close()
