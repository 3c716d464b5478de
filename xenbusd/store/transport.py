"""Transports of bytes to a store and back: a stream socket, or the kernel's character device.

Both call back from the event loop: `received` with bytes; `refused` with a packet and the errno that the device's
write() answered it with; `ended` once, with the reason. After `close` none of them is called.

Source: Linux drivers/xen/xenbus/xenbus_dev_frontend.c, xenbus_file_write() and xenbus_file_poll().
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from xenbusd.errors import StoreLost
from xenbusd.store.endpoint import Endpoint
from xenbusd.store.wire import HEADER, PAYLOAD_MAX

READ_SIZE = 65536
"""Bytes that one read asks of the device."""

DEVICE_PAYLOAD_MAX = PAYLOAD_MAX - HEADER.size
"""The device gathers header and payload of a request in one buffer of 4096 bytes."""

_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.EIO, errno.ENODEV, errno.ENXIO})
"""Errnos of a write to a device that mean that the connection failed, not the request."""


class Transport(Protocol):
    """One connection to a store."""

    payload_max: int
    """Bytes of payload that one request may carry."""
    gone: bool
    """The connection has ended, or was closed."""

    def send(self, packets: Sequence[bytes]) -> None:
        """Send whole packets, in order."""

    def abort(self) -> None:
        """End the connection after invalid bytes; `ended` is called in a later turn."""

    async def close(self) -> None:
        """Close the connection at once; unsent packets are dropped. Idempotent."""


class StreamTransport(asyncio.Protocol):
    """A connected stream socket."""

    payload_max = PAYLOAD_MAX

    def __init__(self, received: Callable[[bytes], object], ended: Callable[[str], object]) -> None:
        self.gone = False
        self._received = received
        self._ended = ended
        self._closing = False
        self._transport: asyncio.Transport | None = None
        self._over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the event loop's half (asyncio calls this)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        """Pass on the bytes received (asyncio calls this)."""
        if not self.gone:
            self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the connection (asyncio calls this)."""
        self.gone = True
        if not self._over.done():
            self._over.set_result(None)
        if not self._closing:
            self._ended(str(exc) if exc else "the store closed the connection")

    def send(self, packets: Sequence[bytes]) -> None:
        """Send whole packets in one write."""
        if self._transport is not None and not self.gone:
            self._transport.write(b"".join(packets))

    def abort(self) -> None:
        """End the connection; `ended` is called in a later turn."""
        self.gone = True
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close the socket, and wait until the event loop has closed it, too."""
        self._closing = True
        self.abort()
        await asyncio.shield(self._over)


class DeviceTransport:
    """A non-blocking character device that speaks the same bytes: /dev/xen/xenbus.

    A write must hold exactly one packet: the device would lose every byte of a second one. It never reports that it is
    writable, so each packet is simply written, and the loop waits only where that would block.
    """

    payload_max = DEVICE_PAYLOAD_MAX

    def __init__(
        self,
        fd: int,
        received: Callable[[bytes], object],
        refused: Callable[[bytes, int], object],
        ended: Callable[[str], object],
    ) -> None:
        os.set_blocking(fd, False)
        self.gone = False
        self._fd = fd
        self._received = received
        self._refused = refused
        self._ended = ended
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[bytes] = deque()
        self._sent = 0
        """Bytes of the first unsent packet that the device has taken already."""
        self._full = False
        self._loop.add_reader(fd, self._readable)

    def send(self, packets: Sequence[bytes]) -> None:
        """Send whole packets, each in a write of its own."""
        self._unsent.extend(packets)
        if not self._full:
            self._write()

    def abort(self) -> None:
        """End the connection; `ended` is called in a later turn."""
        if self._let_go():
            self._loop.call_soon(self._report_lost, "the connection was given up")

    async def close(self) -> None:
        """Close the device."""
        self._closing = True
        self._let_go()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(str(error))
            return
        if data:
            self._received(data)
        else:
            self._end("the store closed the connection")

    def _write(self) -> None:
        while self._unsent and not self.gone:
            packet = self._unsent[0]
            try:
                self._sent += os.write(self._fd, packet[self._sent :] if self._sent else packet)
            except (BlockingIOError, InterruptedError):
                if not self._full:
                    self._full = True
                    self._loop.add_writer(self._fd, self._write)
                return
            except OSError as error:
                if error.errno in _GONE:
                    self._end(str(error))
                    return
                self._unsent.popleft()
                self._sent = 0
                self._refused(packet, error.errno or errno.EIO)
            else:
                if self._sent == len(packet):
                    self._unsent.popleft()
                    self._sent = 0
        if self._full and not self.gone:
            self._full = False
            self._loop.remove_writer(self._fd)

    def _end(self, reason: str) -> None:
        if self._let_go():
            self._report_lost(reason)

    def _report_lost(self, reason: str) -> None:
        if not self._closing:
            self._ended(reason)

    def _let_go(self) -> bool:
        if self.gone:
            return False
        self.gone = True
        self._loop.remove_reader(self._fd)
        if self._full:
            self._loop.remove_writer(self._fd)
        self._unsent.clear()
        os.close(self._fd)
        return True


async def connect(
    endpoint: Endpoint,
    *,
    received: Callable[[bytes], object],
    refused: Callable[[bytes, int], object],
    ended: Callable[[str], object],
) -> Transport:
    """Open a connection to a store.

    Raises:
        StoreLost: no store answers there now.
    """
    opened = endpoint.open()
    if isinstance(opened, int):
        return DeviceTransport(opened, received, refused, ended)
    opened.setblocking(False)
    loop = asyncio.get_running_loop()

    def stream() -> StreamTransport:
        return StreamTransport(received, ended)

    try:
        if opened.family == socket.AF_UNIX:
            return (await loop.create_unix_connection(stream, sock=opened))[1]
        return (await loop.create_connection(stream, sock=opened))[1]
    except OSError as error:
        opened.close()
        raise StoreLost(f"no store answers at {endpoint.name}: {error.strerror}") from error
