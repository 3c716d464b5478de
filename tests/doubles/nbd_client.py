"""A small NBD client for tests: sends exactly the bytes that the test wants, and parses replies."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import NamedTuple

from xenbusd_vbd.nbd import wire


class Answer(NamedTuple):
    """One reply: the data of a read, or the error."""

    handle: int
    error: int
    data: bytes
    message: str = ""


class NbdClient:
    """One connection to an export.

    Args:
        reader: of an asyncio stream.
        writer: of the same stream.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.lengths: dict[int, int] = {}
        """Handle -> length of the reads in flight: a simple reply does not tell."""

    @classmethod
    async def connect(cls, path: str, *, structured: bool = False) -> NbdClient:
        """Connect and go straight to the requests."""
        client = cls(*await asyncio.open_unix_connection(path))
        assert await client.reader.readexactly(18) == b"NBDMAGICIHAVEOPT\0\3"
        client.writer.write(struct.pack(">I", 3))
        if structured:
            client.option(wire.Option.STRUCTURED_REPLY)
            assert await client.option_reply() == (wire.Reply.ACK, b"")
        client.option(wire.Option.GO, bytes(6))
        while (await client.option_reply())[0] != wire.Reply.ACK:
            pass
        return client

    def option(self, number: int, data: bytes = b"") -> None:
        """Send one option."""
        self.writer.write(wire.OPTION.pack(wire.IHAVEOPT, number, len(data)) + data)

    async def option_reply(self) -> tuple[int, bytes]:
        """Receive one reply to an option: kind and data."""
        head = await self.reader.readexactly(20)
        magic, _option, kind, length = wire.OPTION_REPLY.unpack(head)
        assert magic == wire.OPTION_REPLY_MAGIC
        return kind, await self.reader.readexactly(length)

    def request(
        self, command: int, handle: int, offset: int = 0, length: int = 0, *, data: bytes = b"", flags: int = 0
    ) -> None:
        """Send one request."""
        if command == wire.Command.READ:
            self.lengths[handle] = length
        length = len(data) or length
        self.writer.write(wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, handle, offset, length) + data)

    async def answer(self) -> Answer:
        """Receive one reply, simple or structured."""
        head = await self.reader.readexactly(16)
        if struct.unpack_from(">I", head)[0] == wire.SIMPLE_REPLY_MAGIC:
            _magic, error, handle = wire.SIMPLE_REPLY.unpack(head)
            data = b"" if error else await self.reader.readexactly(self.lengths.get(handle, 0))
            return Answer(handle, error, data)
        magic, flags, kind, handle, length = wire.CHUNK.unpack(head + await self.reader.readexactly(4))
        assert (magic, flags) == (wire.STRUCTURED_REPLY_MAGIC, 1)
        payload = await self.reader.readexactly(length)
        if kind == wire.ChunkType.OFFSET_DATA:
            return Answer(handle, 0, payload[8:])
        if kind == wire.ChunkType.NONE:
            assert not payload
            return Answer(handle, 0, b"")
        assert kind == wire.ChunkType.ERROR
        error, size = struct.unpack_from(">IH", payload)
        assert size == len(payload) - 6
        return Answer(handle, error, b"", payload[6:].decode())

    async def ask(
        self, command: int, handle: int, offset: int = 0, length: int = 0, *, data: bytes = b"", flags: int = 0
    ) -> Answer:
        """Send one request and receive one reply."""
        self.request(command, handle, offset, length, data=data, flags=flags)
        return await self.answer()

    async def is_over(self) -> bool:
        """Wait until the server has closed the connection; return whether nothing came before that."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        """Close the connection without DISC."""
        self.writer.transport.abort()
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something has happened; fail after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)
