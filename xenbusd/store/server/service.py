"""The embedded store: a XenStore of our own, for the simulated host and for tests.

Source: docs/misc/xenstore.txt.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

from xenbusd.errors import StoreError
from xenbusd.process.listener import Listener
from xenbusd.store.server import verbs
from xenbusd.store.server.connection import Connection
from xenbusd.store.server.domains import Domain
from xenbusd.store.server.permissions import parse_permissions
from xenbusd.store.server.quotas import Quotas, Refusal
from xenbusd.store.server.state import State
from xenbusd.store.wire import PAYLOAD_MAX, InvalidPayload, check_path, check_perms

__all__ = ["Quotas", "StoreServer"]


class StoreServer:
    """One store; any number of connections, each acting as one domain.

    Args:
        quotas: the limits of every domain other than 0.
    """

    def __init__(self, *, quotas: Quotas | None = None) -> None:
        self._state = State(quotas or Quotas())
        self._servers: list[asyncio.Server] = []
        self._listeners: list[Listener] = []
        self._attaching: set[asyncio.Task[object]] = set()

    async def listen(self, path: str) -> None:
        """Serve domain 0 on a UNIX socket that only its owner may open. A socket file that nobody serves is replaced.

        Raises:
            UsageError: a store answers there already, the path is taken by something else, or cannot be used.
        """
        listener = Listener(path)
        self._listeners.append(listener)
        dom0 = self._state.domains.dom0
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(lambda: Connection(self._state, dom0), sock=listener.sock))

    def attach(self, sock: socket.socket, domid: int) -> None:
        """Serve a connected stream socket as `domid`; the socket is the server's from now on.

        Raises:
            StoreError: no domain can have this number.
        """
        if self._state.closed:
            sock.close()
            return
        with _as_store_error("ATTACH", str(domid)):
            domain = self._state.domains.get(domid)
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(self._serve(sock, domain))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)

    def introduce(self, domid: int) -> None:
        """Make a domain known, as INTRODUCE does: fires @introduceDomain. Idempotent.

        Raises:
            StoreError: no domain can have this number.
        """
        with _as_store_error("INTRODUCE", str(domid)):
            self._state.introduce(domid)

    def release(self, domid: int) -> None:
        """Forget a domain that has ended: close its connections, delete the nodes it owns, fire @releaseDomain.
        Idempotent.

        Its domid is removed from all permission lists, so that a later domain of the same number inherits nothing
        (XSA-322).

        Raises:
            StoreError: domain 0 cannot be released.
        """
        if domid == 0:
            raise StoreError("RELEASE", "0", errno.EINVAL)
        self._state.release(domid)

    def write(self, path: str, value: str | bytes, perms: list[str] | None = None) -> None:
        """Set a node as domain 0, with any missing nodes above it, and with its permissions if they are given.

        Raises:
            InvalidPath, InvalidPayload, InvalidPermission: (pyxs's) an argument is not valid.
        """
        node = _absolute(path)
        data = value if isinstance(value, bytes) else value.encode()
        if len(node) + 1 + len(data) > PAYLOAD_MAX:
            raise InvalidPayload(f"the value of {path} has {len(data)} bytes; with its path it may have {PAYLOAD_MAX}")
        words = check_perms(perms) if perms is not None else None
        tree, dom0 = self._state.tree, self._state.domains.dom0
        with _as_store_error("WRITE", path):
            verbs.write(tree, dom0, node, data)
            if words is not None:
                verbs.set_perms(tree, dom0, node, parse_permissions(words))
        self._state.fire()

    def rm(self, path: str) -> None:
        """Remove a node and everything below it, as domain 0. Idempotent.

        Raises:
            InvalidPath: (pyxs's) it is not a valid path.
            StoreError: the root cannot be removed.
        """
        node = _absolute(path)
        if self._state.tree.find(node) is not None:
            with _as_store_error("RM", path):
                verbs.rm(self._state.tree, self._state.domains.dom0, node)
            self._state.fire()

    def exists(self, path: str) -> bool:
        """Return whether the node exists.

        Raises:
            InvalidPath: (pyxs's) it is not a valid path.
        """
        return self._state.tree.find(_absolute(path)) is not None

    async def close(self) -> None:
        """Close all connections and remove the sockets. Idempotent."""
        self._state.closed = True
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for task in list(self._attaching):
            task.cancel()
        await asyncio.gather(*self._attaching, return_exceptions=True)
        self._state.close()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        # Transports close in the next turn of the loop: wait for that turn before the caller ends the loop.
        await asyncio.sleep(0)

    async def _serve(self, sock: socket.socket, domain: Domain) -> None:
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(self._state, domain), sock)
        except OSError:
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise


@contextlib.contextmanager
def _as_store_error(op: str, about: str) -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        raise StoreError(op, about, refusal.code) from None


def _absolute(path: str) -> bytes:
    raw = check_path(path)
    return raw if raw.startswith(b"/") else b"/local/domain/0/" + raw
