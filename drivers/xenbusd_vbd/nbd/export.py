"""A disk offered over NBD: on a UNIX socket to any client, and on a given socket to the kernel's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from xenbusd.api import Listener
from xenbusd_vbd.nbd.disk import Disk
from xenbusd_vbd.nbd.server_connection import NbdConnection
from xenbusd_vbd.nbd.server_requests import COUNTED, Counters
from xenbusd_vbd.nbd.wire import NAME_MAX, REQUEST_DATA_MAX, Offer, TransmissionFlags

CONNECTIONS_MAX = 128
"""Most clients at a time; more are turned away at once."""
DRAIN_S = 2.0
"""Seconds that `close` leaves to requests under way."""


class NbdExport:
    """One disk, served to any number of NBD clients; to be used on the event loop's thread.

    Args:
        disk: what to serve.
        name: the export's name; clients may also ask for the default export, "".
        log: called as `log(event, **facts)` when a client is turned away or breaks the protocol.
        counters: gets the totals of COUNTED, which it has already; None: a mapping of the export's own.

    Raises:
        ValueError: the name is longer than NBD allows, or NBD cannot announce the disk's sizes.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        name: str,
        log: Callable[..., None] | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.name = name
        self.counters: Counters = dict.fromkeys(COUNTED, 0) if counters is None else counters
        self._disk = disk
        self._log = log or (lambda *_args, **_facts: None)
        self._offer = offer_of(disk, name)
        self._server: asyncio.Server | None = None
        self._listener: Listener | None = None
        self._connections: set[NbdConnection] = set()
        self._serving: set[asyncio.Task[object]] = set()
        self._nobody_left = asyncio.Event()
        self._nobody_left.set()
        self._closed = False

    @property
    def flags(self) -> TransmissionFlags:
        """The transmission flags announced to every client; the kernel's client gets them by ioctl."""
        return self._offer.flags

    @property
    def size_bytes(self) -> int:
        """The size announced to every client."""
        return self._offer.size_bytes

    @property
    def block_size(self) -> int:
        """The smallest unit of a request, in bytes."""
        return self._offer.minimum

    @property
    def clients(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    def refresh(self) -> None:
        """Announce the disk as it is now to clients that connect from here on. Clients that are connected may reach the
        bytes that it has grown by; they learn of other changes when they connect again.

        Raises:
            ValueError: NBD cannot announce the disk's sizes.
        """
        self._offer = offer_of(self._disk, self.name)
        for connection in self._connections:
            connection.grow(self._offer.size_bytes)

    async def listen(self, path: str) -> None:
        """Accept clients on a UNIX socket that only its owner may use.

        A socket that a dead server left behind is replaced.

        Raises:
            UsageError: another server listens there, the path is no socket, or it cannot be used.
            ValueError: the export listens already, or is closed.
        """
        if self._server is not None or self._closed:
            raise ValueError(f"the export {self.name} listens already, or is closed")
        self._listener = Listener(path)
        self._server = await asyncio.get_running_loop().create_unix_server(self._connection, sock=self._listener.sock)

    def serve(self, sock: socket.socket) -> None:
        """Serve requests from a connected stream socket on which the handshake is done, or not needed.

        The socket belongs to the export from here on. Replies are simple ones: the kernel's client knows no others.

        Raises:
            ValueError: the export is closed, or this is not a stream socket.
        """
        if self._closed or sock.type != socket.SOCK_STREAM:
            sock.close()
            raise ValueError(f"the export {self.name} is closed, or this is no stream socket")
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] = loop.create_task(
            loop.connect_accepted_socket(lambda: self._connection(handshake=False), sock)
        )
        self._serving.add(task)
        task.add_done_callback(self._served)

    async def close(self, *, drain_s: float = DRAIN_S) -> None:
        """Stop listening, answer the requests under way, and close all connections.

        Args:
            drain_s: seconds after which a client is cut off that still has requests under way, or does not take its
                replies.
        """
        self._closed = True
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._listener is not None:
            self._listener.close()
        if self._serving:
            await asyncio.wait(self._serving, timeout=drain_s)
        for connection in list(self._connections):
            connection.finish()
        if not await self._empty(drain_s):
            for connection in list(self._connections):
                connection.abort()
            await self._empty(DRAIN_S)

    async def _empty(self, timeout_s: float) -> bool:
        """Wait until no client is connected, but no longer than `timeout_s`; return whether none is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._nobody_left.wait()
        return not self._connections

    def _connection(self, *, handshake: bool = True) -> NbdConnection:
        return NbdConnection(self._disk, self._offer, self.counters, self._opened, self._lost, handshake=handshake)

    def _opened(self, connection: NbdConnection) -> bool:
        if self._closed:
            return False
        if len(self._connections) >= CONNECTIONS_MAX:
            self._log("nbd.refused", export=self.name, reason=f"{CONNECTIONS_MAX} clients are connected")
            return False
        self._connections.add(connection)
        self._nobody_left.clear()
        self.counters["nbd_connections"] += 1
        return True

    def _lost(self, connection: NbdConnection, breach: str | None) -> None:
        if breach is not None:
            self._log("nbd.breach", export=self.name, reason=breach)
        self._connections.discard(connection)
        if not self._connections:
            self._nobody_left.set()

    def _served(self, task: asyncio.Task[object]) -> None:
        self._serving.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log("nbd.refused", export=self.name, reason=f"the socket cannot be served: {error}")


def offer_of(disk: Disk, name: str) -> Offer:
    """Return how a disk is announced.

    Raises:
        ValueError: NBD does not allow the name or a size.
    Source: doc/proto.md, "Conventions" (strings) and "Block size constraints".
    """
    if not name or len(name.encode()) > NAME_MAX or "\0" in name:
        raise ValueError(f"an NBD export's name has 1 to {NAME_MAX} bytes and no NUL, this one is {name[:64]!r}")
    block, preferred = disk.block_size, disk.preferred_size
    if block & (block - 1) or not 1 <= block <= 65536:
        raise ValueError(f"{name}: a block size is a power of two up to 65536 bytes, not {block}")
    if preferred & (preferred - 1) or not max(block, 512) <= preferred <= REQUEST_DATA_MAX:
        raise ValueError(
            f"{name}: a preferred size is a power of two from {max(block, 512)} to {REQUEST_DATA_MAX} bytes,"
            f" not {preferred}"
        )
    if disk.size_bytes < 0 or disk.size_bytes % block or disk.size_bytes >= 1 << 63:
        raise ValueError(f"{name}: a disk's size is a multiple of {block} bytes below 2^63, not {disk.size_bytes}")
    flags = TransmissionFlags.HAS_FLAGS | TransmissionFlags.CAN_MULTI_CONN
    if disk.read_only:
        flags |= TransmissionFlags.READ_ONLY
    elif disk.can_trim:
        flags |= TransmissionFlags.SEND_TRIM
    if disk.can_flush:
        flags |= TransmissionFlags.SEND_FLUSH | TransmissionFlags.SEND_FUA
    return Offer(name, f"Xen {disk.kind} {name}", disk.size_bytes, flags, block, preferred, REQUEST_DATA_MAX)
