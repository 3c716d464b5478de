"""The broker: the simulated counterpart of the hypervisor, with the embedded store beside it.

It answers one short request at a time, in one thread, so that nothing here needs a lock. A process that sends an
invalid request, or does not take its replies, is cut off; when a connection ends, for whatever reason, everything held
through it is given back.
"""

from __future__ import annotations

import asyncio
import errno
import socket

from xenbusd.host.sim.domain import Refusal
from xenbusd.host.sim.machine import Answer, Machine, Process
from xenbusd.host.sim.protocol import REQUEST_BYTES_MAX, STORE_SUFFIX, pack, parse_request
from xenbusd.process.descriptors import allow_many
from xenbusd.process.listener import Listener
from xenbusd.store.server import StoreServer

BACKLOG = 128
"""Connections that may wait to be accepted."""

_ACCEPT_AGAIN_S = 0.1
"""Pause after the process ran out of descriptors, so as not to spin on a connection that cannot be accepted."""


class SimBroker:
    """A simulated host. Domain 0 lives as long as it does; the others come and go with their processes.

    Args:
        path: where processes connect. The store's own socket, for Xen's tools in dom0, has the same name with
            `.store` added.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.store_path = path + STORE_SUFFIX
        self.store = StoreServer()
        self._machine = Machine(self.store)
        self._processes: dict[socket.socket, Process] = {}
        self._listener: Listener | None = None
        self._accept_again: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to serve on the running loop.

        Raises:
            UsageError: another host answers at this path, or none can be made there.
        """
        allow_many()
        listener = Listener(self.path, socket.SOCK_SEQPACKET)
        try:
            await self.store.listen(self.store_path)
            listener.sock.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.sock, self._accept)

    async def close(self) -> None:
        """Cut every process off, end the store, remove the sockets. Idempotent."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        asyncio.get_running_loop().remove_reader(listener.sock)
        if self._accept_again is not None:
            self._accept_again.cancel()
        listener.close()
        for sock in list(self._processes):
            self._cut(sock)
        await self.store.close()

    def _accept(self) -> None:
        assert self._listener is not None
        listener = self._listener.sock
        loop = asyncio.get_running_loop()
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            loop.remove_reader(listener)
            self._accept_again = loop.call_later(_ACCEPT_AGAIN_S, loop.add_reader, listener, self._accept)
            return
        sock.setblocking(False)
        self._processes[sock] = self._machine.enter()
        loop.add_reader(sock, self._receive, sock)

    def _receive(self, sock: socket.socket) -> None:
        try:
            # One byte of room more than any request needs shows one that is too long. Descriptors that a process
            # might send along are dropped by the kernel, for there is no room for them at all.
            data = sock.recv(REQUEST_BYTES_MAX + 1)
            request = parse_request(data)
        except BlockingIOError:
            return
        except (OSError, ValueError):  # the process has gone, or sent no request; an empty packet is its end, too
            self._cut(sock)
            return
        answer = Answer()
        try:
            answer = self._machine.answer(self._processes[sock], request)
            reply = pack((0, *answer.words))
        except Refusal as refusal:
            reply = pack((refusal.errno, *refusal.words))
        except OSError as error:
            reply = pack((error.errno or errno.EIO,))
        except BaseException:  # our bug: the loop reports it, and it costs this process alone
            self._cut(sock)
            raise
        try:
            socket.send_fds(sock, [reply], answer.fds)
        except OSError:  # the process has gone, or sends without ever receiving
            self._cut(sock)
        if answer.parting is not None:
            answer.parting.close()

    def _cut(self, sock: socket.socket) -> None:
        """End a connection."""
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()
        self._machine.leave(self._processes.pop(sock))
