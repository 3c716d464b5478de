"""Asks a daemon on its control socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from xenbusd.control.protocol import (
    DaemonStatus,
    DeviceDetails,
    DeviceTimeline,
    Event,
    Following,
    FollowRequest,
    ListRequest,
    Request,
    ShowRequest,
    TimelineRequest,
    decode_reply,
    encode_request,
)
from xenbusd.control.records import ControlError, Record

REPLY_BYTES_MAX = 1 << 26
"""Bytes of one reply: a list of a hundred thousand devices is shorter."""

R = TypeVar("R", bound=Record)


class ControlClient:
    """One conversation; one request at a time. Made by `connected`, or on both ends of any stream socket.

    Every method raises ControlError if the daemon refuses, or ends the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def status(self) -> DaemonStatus:
        """The daemon and its devices."""
        return await self._ask(ListRequest(), DaemonStatus)

    async def details(self, device: str) -> DeviceDetails:
        """All that the daemon knows of a device, named as in "vbd/3/51712"."""
        return await self._ask(ShowRequest(device), DeviceDetails)

    async def timeline(self, device: str) -> DeviceTimeline:
        """The events of a device, which may have gone."""
        return await self._ask(TimelineRequest(device), DeviceTimeline)

    async def follow(self, device: str | None = None) -> AsyncIterator[Event]:
        """Begin to follow a device, or all; nothing is missed that happens after this has returned.

        The iterator yields events as they happen, and ends by ControlError when the daemon ends or has cut us off
        because we read too slowly. The connection can be used for nothing else any more.
        """
        await self._ask(FollowRequest(device), Following)
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        while True:
            yield await self._reply(Event)

    async def _ask(self, request: Request, kind: type[R]) -> R:
        self._writer.write(encode_request(request))
        return await self._reply(kind)

    async def _reply(self, kind: type[R]) -> R:
        line = b""
        with suppress(ConnectionError):
            line = await self._reader.readline()
        return decode_reply(line, kind)


@asynccontextmanager
async def connected(path: str) -> AsyncIterator[ControlClient]:
    """Connect to the daemon whose control socket is at `path`.

    Raises:
        ControlError: none answers there.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=REPLY_BYTES_MAX)
    except OSError as error:
        raise ControlError(
            f"no daemon answers at {path} ({error.strerror or error}): is `xenbusd serve` running?"
        ) from None
    try:
        yield ControlClient(reader, writer)
    finally:
        writer.close()
