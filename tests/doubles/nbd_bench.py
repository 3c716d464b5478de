"""An NBD engine on an export of a disk in memory, which can go and come back; and a server by script."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.doubles.memory_disk import MemoryDisk
from xenbusd_vbd.image.engine import Job
from xenbusd_vbd.image.remote import NbdEngine
from xenbusd_vbd.image.server import RemoteServer
from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.address import Address
from xenbusd_vbd.nbd.export import NbdExport
from xenbusd_vbd.protocol import OKAY, READ, Request


def job(op: int, sector: int = 0, data: bytes = b"", *, sectors: int | None = None, pieces: int = 1) -> Job:
    """A job whose data stands in `pieces` buffers; a discard gets its length by `sectors`."""
    views, size = [], len(data) // pieces
    for first in range(0, len(data), size or 1):
        views.append(memoryview(bytearray(data[first : first + size])))
    length = len(data) // 512 if sectors is None else sectors
    return Job(Request(op, 1, sector, length, (), (), ()), views)


class Lines:
    """A device's log, which keeps its lines."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.facts: list[dict[str, object]] = []

    def info(self, event: str, /, **facts: object) -> None:
        """Keep a line."""
        self.events.append(event)
        self.facts.append(facts)

    warning = info


class Bench:
    """An export, an engine on it, and the jobs that the engine has finished.

    Args:
        folder: for the socket.
        disk: what the server has.
    """

    def __init__(self, folder: Path, disk: MemoryDisk) -> None:
        self.disk = disk
        self.address = Address(path=str(folder / "nbd"))
        self.log = Lines()
        self.done: list[Job] = []
        self.batches = 0
        self._export: NbdExport | None = None
        self._changed = asyncio.Event()

    async def serve(self) -> None:
        """Have a server, as the disk is now."""
        self._export = NbdExport(self.disk, name="disk")
        await self._export.listen(self.address.path)

    async def die(self) -> None:
        """The server is gone from one moment to the next, and what it had not answered is lost."""
        assert self._export is not None
        for connection in tuple(self._export._connections):
            connection.abort()
        self.disk.waiting.clear()
        await self._export.close()

    async def engine(self, *, writable: bool = True) -> NbdEngine:
        """Connect."""
        engine = NbdEngine(RemoteServer(self.address), writable=writable, log=self.log)
        await engine.start()
        return engine

    def finished(self, jobs: list[Job]) -> None:
        """Keep jobs that the engine has finished."""
        self.done += jobs
        self.batches += 1
        self._changed.set()

    async def until(self, *jobs: Job) -> list[int]:
        """Wait until jobs have come back; return their statuses."""
        async with asyncio.timeout(60):
            while not all(job in self.done for job in jobs):
                self._changed.clear()
                await self._changed.wait()
        return [job.status for job in jobs]

    async def run(self, engine: NbdEngine, *jobs: Job) -> list[int]:
        """Do jobs to their end."""
        self.done += engine.submit(list(jobs), self.finished)
        return await self.until(*jobs)

    async def read(self, engine: NbdEngine, sector: int, length: int) -> bytes:
        """Read through the engine."""
        one = job(READ, sector, bytes(length))
        assert await self.run(engine, one) == [OKAY]
        return b"".join(one.buffers)

    async def seen(self, count: int) -> None:
        """Wait until so many requests have reached the disk."""
        await until(lambda: len(self.disk.seen) >= count)

    async def close(self) -> None:
        """End the server."""
        if self._export is not None:
            await self._export.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something has happened."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


GREETING = wire.GREETING.pack(wire.INIT_PASSWD, wire.IHAVEOPT, wire.FIXED_NEWSTYLE | wire.NO_ZEROES)
FLAGS = wire.TransmissionFlags.HAS_FLAGS | wire.TransmissionFlags.SEND_FLUSH | wire.TransmissionFlags.SEND_TRIM


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """One reply to an option."""
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def export_info(size: int = 1 << 20, flags: int = FLAGS) -> bytes:
    """NBD_INFO_EXPORT."""
    return wire.INFO_EXPORT_REPLY.pack(wire.Info.EXPORT, size, flags)


def sizes_info(minimum: int, preferred: int, maximum: int) -> bytes:
    """NBD_INFO_BLOCK_SIZE."""
    return wire.INFO_BLOCK_SIZE_REPLY.pack(wire.Info.BLOCK_SIZE, minimum, preferred, maximum)


def answer(option: int, *infos: bytes) -> bytes:
    """The whole answer to INFO or GO."""
    return b"".join(option_reply(option, wire.Reply.INFO, info) for info in infos) + option_reply(
        option, wire.Reply.ACK
    )


HANDSHAKE = (GREETING, answer(wire.Option.INFO, export_info()), answer(wire.Option.GO, export_info()))
"""What a plain server says: at once, and after each of two options."""


@asynccontextmanager
async def scripted(
    path: str,
    greeting: bytes,
    *answers: bytes,
    then: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object] | None = None,
) -> AsyncIterator[list[bytes]]:
    """A server that sends `greeting`, then one answer for each option, whatever it asks for, and closes.

    Yields:
        The options that came, whole. `then` gets the connection instead of its end; what it returns is awaited.
    """
    options: list[bytes] = []
    here: set[asyncio.StreamWriter] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.add(writer)
        try:
            writer.write(greeting)
            if answers:
                await reader.readexactly(4)
            for answer in answers:
                head = await reader.readexactly(wire.OPTION.size)
                options.append(head + await reader.readexactly(struct.unpack_from(">I", head, 12)[0]))
                writer.write(answer)
            if then is not None:
                await then(reader, writer)  # type: ignore[misc]
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            here.discard(writer)

    server = await asyncio.start_unix_server(converse, path)
    try:
        yield options
    finally:
        server.close()
        await until(lambda: not here)
