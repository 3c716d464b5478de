"""Answers on the control socket, a UNIX socket that only root may open, in the language of `protocol`."""

from __future__ import annotations

import asyncio

from xenbusd.control.protocol import (
    REQUEST_BYTES_MAX,
    Event,
    Following,
    FollowRequest,
    ListRequest,
    Refusal,
    Reply,
    Request,
    ShowRequest,
    decode_request,
    encode_reply,
)
from xenbusd.control.provider import Provider
from xenbusd.control.records import ControlError
from xenbusd.process.listener import Listener

FOLLOW_BYTES_MAX = 1 << 18
"""Bytes of events that may wait for a client which follows and does not read. One more event, and it is cut off."""


class ControlServer:
    """Serves any number of clients.

    Args:
        provider: has the answers.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._server: asyncio.AbstractServer | None = None
        self._listener: Listener | None = None
        self.clients: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}
        """Each conversation's task, and the connection."""

    async def listen(self, path: str) -> None:
        """Begin to answer at `path`. A socket left behind is removed.

        Raises:
            UsageError: another daemon answers there.
        """
        self._listener = Listener(path)
        self._server = await asyncio.start_unix_server(
            self._converse, sock=self._listener.sock, limit=REQUEST_BYTES_MAX
        )

    async def close(self) -> None:
        """Stop answering, cut all clients off, and remove the socket. Idempotent."""
        if self._server is not None and self._listener is not None:
            self._server.close()
            self._listener.close()
            self._server = None
        conversations = [task for task in self.clients if task is not None]
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self.clients[task] = writer
        try:
            async for line in reader:
                await self._serve(line, reader, writer)
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass  # the client has gone; its line is longer than a request may be; or the server closes
        finally:
            del self.clients[task]
            writer.close()

    async def _serve(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = decode_request(line)
        except ControlError as error:
            writer.write(encode_reply(Refusal(str(error))))
        else:
            if isinstance(request, FollowRequest):
                await self._stream(request, reader, writer)
                return
            writer.write(encode_reply(await self._answer(request)))
        await writer.drain()

    async def _answer(self, request: Request) -> Reply:
        if isinstance(request, ListRequest):
            return await self._provider.status()
        if isinstance(request, ShowRequest):
            details = await self._provider.details(request.device)
            return details or Refusal(f"this daemon has no device {request.device}")
        timeline = await self._provider.timeline(str(request.device))
        return timeline or Refusal(f"this daemon has not seen a device {request.device}")

    async def _stream(self, request: FollowRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Report events until the client closes the connection, sends anything, or has too much waiting for it."""

        def report(event: Event) -> None:
            if writer.transport.get_write_buffer_size() > FOLLOW_BYTES_MAX:
                writer.transport.abort()
            elif not writer.transport.is_closing():
                writer.write(encode_reply(event))

        with self._provider.reporting(request.device, report):
            writer.write(encode_reply(Following(request.device)))
            await reader.read(1)
        writer.close()
