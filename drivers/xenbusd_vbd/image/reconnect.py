"""A connection to an image server that outlives servers: when one ends, another is made in its place.

A new connection first writes again, one by one because they may overlap, what the previous server had answered and may
have lost with its memory (see `unflushed`). Only then may its owner use it, to send again the requests that were not
answered. While there is no server, it tries again with growing pauses; after OUTAGE_S the owner has to fail what waits.

Decision: D23.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import Protocol

from xenbusd.api import ResourceError
from xenbusd_vbd.image.commands import Pending
from xenbusd_vbd.image.unflushed import UnflushedWrites
from xenbusd_vbd.nbd.client import NbdClient
from xenbusd_vbd.nbd.client_handshake import Export
from xenbusd_vbd.nbd.wire import CMD_WRITE

PAUSE_S, PAUSE_MAX_S = 0.1, 5.0
"""Seconds between attempts to get a server back; each pause is twice as long as the previous one."""
STEADY_S = 10.0
"""A connection that lasted so long makes the next attempts begin with PAUSE_S again."""
OUTAGE_S = 30.0
"""How long requests wait for a server; then they are answered with an error, until there is one."""


class Log(Protocol):
    """The methods of a device's log that are used here."""

    def info(self, event: str, /, **facts: object) -> object:
        """Log a rare event of a disk's life."""

    def warning(self, event: str, /, **facts: object) -> object:
        """Log an event that an administrator may want to know of."""


class Source(Protocol):
    """Where connections come from."""

    async def open(self) -> tuple[socket.socket, Export]:
        """Make a connection, and a server for it where the server is ours; the previous connection is given up.

        Raises:
            ResourceError
        """

    async def inquire(self) -> Export:
        """Ask for the export's present description, without touching the connection in use.

        Raises:
            ResourceError
        """

    async def close(self) -> None:
        """End the server, if it is ours. Idempotent."""


class Owner(Protocol):
    """The user of the connection: sends requests on it."""

    def accept(self, export: Export) -> None:
        """Adopt the server's description of its export.

        Raises:
            ResourceError: the disk cannot be served from it.
        """

    def answered(self, answers: list[tuple[Pending, int]]) -> None:
        """Take requests that were answered, each with 0 or an errno."""

    def connected(self) -> None:
        """Send requests: there is a client again."""

    def disconnected(self, reason: str, unanswered: list[Pending]) -> None:
        """Keep the unanswered requests: there is no client."""

    def given_up(self) -> None:
        """Fail the waiting requests, and new ones until `connected`."""


class LastingConnection:
    """The connection of one disk. Made by `start`.

    Args:
        source: gives connections.
        unflushed: the writes that a new server gets first.
        owner: is notified of everything, by plain calls on the event loop.
        log: the device's.
    """

    def __init__(self, source: Source, unflushed: UnflushedWrites, owner: Owner, log: Log) -> None:
        self.source = source
        self.client: NbdClient[Pending] | None = None
        """None while there is no server to send to."""
        self._unflushed = unflushed
        self._owner = owner
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._connected_at = 0.0
        self._pause_s = PAUSE_S
        self._recovery: asyncio.Task[None] | None = None
        self._back = asyncio.Event()

    async def start(self) -> None:
        """Connect for the first time.

        Raises:
            ResourceError: there is no server, or it does not offer what the disk needs.
        """
        self._use(await self._connect())

    def drop(self, reason: str) -> None:
        """End the connection as if the server had ended it."""
        if self.client is not None:
            self.client.drop(reason)

    async def renew(self, reason: str) -> None:
        """Replace the connection, and wait up to OUTAGE_S for the new one."""
        self.drop(reason)
        self._back.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(OUTAGE_S):
                await self._back.wait()

    async def close(self) -> None:
        """End connection, attempts, and our own server, in order. Idempotent."""
        if self._recovery is not None:
            self._recovery.cancel()
            with suppress(asyncio.CancelledError):
                await self._recovery
            self._recovery = None
        if self.client is not None:
            self.client.close()
            self.client = None
        await self.source.close()

    async def _connect(self) -> NbdClient[Pending]:
        sock, export = await self.source.open()
        try:
            self._owner.accept(export)
        except ResourceError:
            sock.close()
            raise
        replay = _Replay()
        client: NbdClient[Pending] = NbdClient(sock, replay.answered, replay.lost)
        try:
            for message in self._unflushed:
                await replay.ask(client, message)
            if client.ended:
                raise _gone_again("after what it had lost was written again")
        except BaseException:
            client.close()
            raise
        client.answered, client.lost = self._owner.answered, self._lost
        return client

    def _use(self, client: NbdClient[Pending]) -> None:
        self.client = client
        self._connected_at = self._loop.time()
        self._back.set()
        self._owner.connected()

    def _lost(self, reason: str) -> None:
        client, self.client = self.client, None
        if client is None:
            return
        self._back.clear()
        self._owner.disconnected(reason, client.unanswered)
        if self._loop.time() - self._connected_at >= STEADY_S:
            self._pause_s = PAUSE_S
        self._recovery = self._loop.create_task(self._recover())

    async def _recover(self) -> None:
        """Connect again, with growing pauses."""
        outage = self._loop.call_later(OUTAGE_S, self._owner.given_up)
        began = self._loop.time()
        try:
            while True:
                try:
                    client = await self._connect()
                    break
                except (ResourceError, OSError) as error:
                    self._log.warning("image_server.failed", error=str(error), again_in_s=round(self._pause_s, 1))
                await asyncio.sleep(self._pause_s)
                self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        finally:
            outage.cancel()
        self._recovery = None
        self._log.info("image_server.back", outage_s=round(self._loop.time() - began, 3))
        self._use(client)


class _Replay:
    """Writes that the previous server had answered, on a new connection, one at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None

    async def ask(self, client: NbdClient[Pending], message: bytearray) -> None:
        answer = self._answer = asyncio.get_running_loop().create_future()
        client.write(_REPLAYED, message)
        client.send()
        if client.ended:
            raise _gone_again("it does not take what is sent")
        if error := await answer:
            raise ResourceError(f"writing again what the previous server had taken fails with error {error}", error)

    def answered(self, answers: list[tuple[Pending, int]]) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answers[0][1])

    def lost(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(_gone_again(reason))


def _gone_again(reason: str) -> ResourceError:
    return ResourceError(f"the image server has gone again: {reason}", errno.ECONNRESET)


_REPLAYED = Pending(None, lambda jobs: None, CMD_WRITE)  # noqa: ARG005
