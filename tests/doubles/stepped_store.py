"""A store that serves one request at a time, when the test says so, and its clients."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from tests.doubles.stepped_loop import Loop
from xenbusd.bus.state import State, parse_state
from xenbusd.errors import NodeNotFound, StoreLost, TransactionConflict
from xenbusd.store.watch import Watch

T = TypeVar("T")


class Store:
    """Nodes, and the clients that watch them."""

    def __init__(self) -> None:
        self.nodes: dict[str, bytes] = {}
        self.clients: list[Client] = []

    def commit(self, changes: dict[str, bytes | None]) -> None:
        """Write nodes, or remove (None) them with all below, all at once; then the watches fire."""
        fired: list[str] = []
        for path, value in changes.items():
            if value is None:
                gone = [node for node in self.nodes if node == path or node.startswith(path + "/")]
                for node in gone:
                    del self.nodes[node]
                fired += [path, *gone] if gone else []
            else:
                self.nodes[path] = value
                fired.append(path)
        for path in fired:
            for client in self.clients:
                client.fire(path)

    def state(self, path: str) -> State:
        """A directory's state."""
        return parse_state(self.nodes.get(path + "/state"))


def read(nodes: dict[str, bytes], path: str) -> bytes:
    """A node's value; a directory that was never written has an empty one."""
    if path in nodes:
        return nodes[path]
    if any(node.startswith(path + "/") for node in nodes):
        return b""
    raise NodeNotFound("READ", path, errno.ENOENT)


def children(nodes: dict[str, bytes], path: str) -> list[str]:
    """The names below a node."""
    names = {node[len(path) + 1 :].split("/")[0] for node in nodes if node.startswith(path + "/")}
    if not names and path not in nodes:
        raise NodeNotFound("DIRECTORY", path, errno.ENOENT)
    return sorted(names)


class Client:
    """One end's connection: the test has requests served, and answers and events delivered, each in their order."""

    connected = True

    def __init__(self, store: Store, loop: Loop) -> None:
        self.store = store
        self.loop = loop
        self.requests: deque[Callable[[], None]] = deque()
        self.arrivals: deque[tuple[object, Callable[[], None]]] = deque()
        self.watches: list[Watch] = []
        self.dead = False
        store.clients.append(self)

    def die(self) -> None:
        """The process is killed: nothing more goes out or comes in."""
        self.dead = True
        self.store.clients.remove(self)
        self.requests.clear()
        self.arrivals.clear()

    def _ask(self, serve: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.loop.create_future()

        def arrive(value: T | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(cast("T", value))
            else:
                future.set_exception(error)

        def answer() -> None:
            try:
                value, error = serve(), None
            except Exception as raised:
                value, error = None, raised
            self.arrivals.append((None, lambda: arrive(value, error)))

        if self.dead:
            future.set_exception(StoreLost("killed"))
        else:
            self.requests.append(answer)
        return future

    def fire(self, path: str) -> None:
        """Queue an event for each watch that it is for, unless the same is queued already (T2)."""
        for watch in self.watches:
            if path == watch.path or path.startswith(watch.path + "/"):
                event = (watch, path)
                if all(event != queued for queued, _ in self.arrivals):
                    self.arrivals.append((event, lambda watch=watch: watch.hint(path)))  # type: ignore[misc]

    # -- what the bus asks for ------------------------------------------------------------------------------------

    def read(self, path: str) -> asyncio.Future[bytes]:
        """As StoreClient.read."""
        return self._ask(lambda: read(self.store.nodes, path))

    def directory(self, path: str) -> asyncio.Future[list[str]]:
        """As StoreClient.directory."""
        return self._ask(lambda: children(self.store.nodes, path))

    def write(self, path: str, value: str | bytes) -> asyncio.Future[None]:
        """As StoreClient.write."""
        return self._ask(lambda: self.store.commit({path: value if isinstance(value, bytes) else value.encode()}))

    def rm(self, path: str) -> asyncio.Future[None]:
        """As StoreClient.rm."""
        return self._ask(lambda: self.store.commit({path: None}))

    async def watch(self, path: str, *, depth: int = 0, wake: Callable[[], None] | None = None) -> Watch:
        """As StoreClient.watch."""
        watch = Watch(path, depth=depth, wake=wake, unwatch=self._unwatch)

        def serve() -> None:
            self.watches.append(watch)
            self.arrivals.append(((watch, path), lambda: watch.hint(path)))

        await self._ask(serve)
        return watch

    async def _unwatch(self, watch: Watch) -> None:
        if watch in self.watches:
            self.watches.remove(watch)

    async def transaction(self, body: Callable[[Any], Awaitable[T]]) -> T:
        """As StoreClient.transaction: what it read must still be so when its commit is served."""
        while True:
            tx = Transaction(self.store)
            value = await body(tx)
            try:
                await self._ask(tx.commit)
            except TransactionConflict:
                continue
            return value


class Transaction:
    """A copy of the store that notes what was read and changed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.nodes = dict(store.nodes)
        self.reads: list[tuple[Callable[[dict[str, bytes], str], object], str, object]] = []
        self.changes: dict[str, bytes | None] = {}

    def _note(self, look: Callable[[dict[str, bytes], str], T], path: str) -> T:
        ours = any(path == changed or changed.startswith(path + "/") for changed in self.changes)
        try:
            value = look(self.nodes, path)
        except NodeNotFound:
            if not ours:
                self.reads.append((look, path, None))
            raise
        if not ours:
            self.reads.append((look, path, value))
        return value

    async def read(self, path: str) -> bytes:
        """As Transaction.read."""
        return self._note(read, path)

    async def directory(self, path: str) -> list[str]:
        """As Transaction.directory."""
        return self._note(children, path)

    async def write(self, path: str, value: str | bytes) -> None:
        """As Transaction.write."""
        self.changes.pop(path, None)
        self.nodes[path] = self.changes[path] = value if isinstance(value, bytes) else value.encode()

    async def rm(self, path: str) -> None:
        """As Transaction.rm: a node that is not there is no error as long as its parent is."""
        children(self.nodes, path.rpartition("/")[0])
        self.changes[path] = None
        for node in [node for node in self.nodes if node == path or node.startswith(path + "/")]:
            del self.nodes[node]

    def commit(self) -> None:
        """Make the changes, if everything that was read is still so."""
        for look, path, value in self.reads:
            try:
                now: object = look(self.store.nodes, path)
            except NodeNotFound:
                now = None
            if now != value:
                raise TransactionConflict("TRANSACTION_END", "", errno.EAGAIN)
        self.store.commit(self.changes)
