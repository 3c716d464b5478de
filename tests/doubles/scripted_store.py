"""A store that says exactly what a test tells it to, byte by byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from xenbusd.errors import StoreLost
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import Endpoint
from xenbusd.store.watch import Watch
from xenbusd.store.wire import HEADER, Message, Op

DEADLINE_S = 20
"""So that a client which says nothing fails its test, instead of stopping them all."""

T = TypeVar("T")


def soon(awaitable: Awaitable[T]) -> asyncio.Future[T]:
    """Let something run in the background; return its future."""
    return asyncio.ensure_future(awaitable)


async def result(awaitable: Awaitable[T]) -> T:
    """Wait for a result, but not for ever."""
    return await asyncio.wait_for(awaitable, DEADLINE_S)


class Peer:
    """The store's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._bytes = b""

    async def request(self) -> Message:
        """Return the next packet of the client."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self._bytes) < HEADER.size or len(self._bytes) < HEADER.size + HEADER.unpack_from(self._bytes)[3]:
                data = await asyncio.get_running_loop().sock_recv(self._sock, 65536)
                assert data, "the client closed the connection"
                self._bytes += data
        op, req_id, tx_id, size = HEADER.unpack_from(self._bytes)
        payload = self._bytes[HEADER.size : HEADER.size + size]
        self._bytes = self._bytes[HEADER.size + size :]
        return Message(op, req_id, tx_id, payload)

    def nothing_more(self) -> bool:
        """Whether `request` has returned all that the client has sent so far."""
        with suppress(BlockingIOError):
            self._bytes += self._sock.recv(65536)
        return not self._bytes

    async def expect(self, op: Op, payload: bytes) -> Message:
        """Return the next packet of the client, which must be this."""
        request = await self.request()
        assert (request.op, request.payload) == (op, payload), f"expected {op.name} {payload!r}, not {request}"
        return request

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def answer(self, request: Message, payload: bytes = b"OK\0", op: int | None = None) -> None:
        """Answer a request."""
        header = HEADER.pack(request.op if op is None else op, request.req_id, request.tx_id, len(payload))
        await self.send(header + payload)

    async def refuse(self, request: Message, name: str) -> None:
        """Answer a request with an error."""
        await self.answer(request, name.encode() + b"\0", Op.ERROR)

    async def event(self, path: str, token: str) -> None:
        """Fire a watch."""
        payload = f"{path}\0{token}\0".encode()
        await self.send(HEADER.pack(Op.WATCH_EVENT, 0, 0, len(payload)) + payload)

    async def hung_up(self) -> bytes:
        """Wait until the client has ended the connection; return what it still sent."""
        async with asyncio.timeout(DEADLINE_S):
            while data := await asyncio.get_running_loop().sock_recv(self._sock, 65536):
                self._bytes += data
        return self._bytes

    async def watch(self, path: str) -> str:
        """Accept the registration of a watch; return its token."""
        request = await self.request()
        assert request.op == Op.WATCH
        asked, token, _ = request.payload.decode().split("\0")
        assert asked == path
        await self.answer(request)
        return token

    def close(self) -> None:
        """End the connection."""
        self._sock.close()


class ScriptedStore:
    """A store endpoint at which a client meets one `Peer` after another.

    Args:
        device: hand out descriptors, as a character device does, rather than sockets.
    """

    def __init__(self, *, device: bool = False) -> None:
        self.endpoint = Endpoint("scripted", self._open)
        self.silent = 0
        """How many of the next attempts find nobody."""
        self.greeting: tuple[bytes, bool] | None = None
        """What the next connection hears before it has said anything, and whether it is closed then."""
        self.attempts = 0
        self._device = device
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._sockets: list[socket.socket] = []

    def _open(self) -> socket.socket | int:
        self.attempts += 1
        if self.silent:
            self.silent -= 1
            raise StoreLost("no store answers at scripted: not now")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._sockets.append(ours)
        if self.greeting is not None:
            said, closes = self.greeting
            self.greeting = None
            ours.send(said)
            if closes:
                ours.shutdown(socket.SHUT_WR)
        self._peers.put_nowait(Peer(ours))
        return theirs.detach() if self._device else theirs

    async def accept(self) -> Peer:
        """Return the other end of the client's next connection."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._peers.get()

    def close(self) -> None:
        """End every connection."""
        for sock in self._sockets:
            sock.close()


async def watching(client: StoreClient, peer: Peer, path: str, **how: object) -> Watch:
    """Register a watch, its first event over."""
    asked = asyncio.ensure_future(client.watch(path, **how))  # type: ignore[arg-type]  # depth, wake
    token = await peer.watch(path)
    watch = await asked
    await peer.event(path, token)
    assert await result(watch.wait()) == {path}
    return watch
