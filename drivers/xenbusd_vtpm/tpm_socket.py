"""A TPM for this domain's programs, on a UNIX socket: raw commands in, raw responses out, as with /dev/tpm0.

tpm2-tss connects to it by its `cmd` TCTI: TPM2TOOLS_TCTI='cmd:socat - UNIX-CONNECT:/run/xenbusd/vtpm-0.sock'.
"""

from __future__ import annotations

import asyncio
import contextlib

from xenbusd.api import Listener
from xenbusd_vtpm.client import PageClient
from xenbusd_vtpm.protocol import MESSAGE_MAX, TPM_HEAD

CLIENTS_MAX = 64
"""Connections at a time; further ones are closed at once."""


class TpmSocket:
    """Serves up to `CLIENTS_MAX` programs at once, one command at a time.

    Args:
        client: carries the commands out.
        path: the socket's, accessible to root alone.

    Raises:
        UsageError: there can be no socket at this path.
    """

    def __init__(self, client: PageClient, path: str) -> None:
        self._client = client
        self._listener = Listener(path)
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Start listening."""
        self._server = await asyncio.start_unix_server(self._converse, sock=self._listener.sock)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            if len(self._conversations) <= CLIENTS_MAX:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                    await self._answer(reader, writer)
        finally:
            self._conversations.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = self._client.version
        while True:
            head = await reader.readexactly(TPM_HEAD.size)
            _, size, _ = TPM_HEAD.unpack(head)
            if not TPM_HEAD.size <= size <= MESSAGE_MAX:  # there is no way to find the next command's beginning
                writer.write(version.refusal(version.bad_size))
                return
            command = head + await reader.readexactly(size - len(head))
            writer.write(await self._client.execute(command))
            await writer.drain()

    async def close(self) -> None:
        """Stop listening, and close all connections. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._conversations):
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        self._listener.close()
