"""Both ends of a device on one event loop whose clock and store do only what the test says.

The ends are the real ones: scans, supervisors, devices. Between them stands a store of which each request and each
answer is a step of its own, so that any interleaving of the two can be walked; and the clock jumps from timer to timer.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

from xenbusd.bus.device import Device
from xenbusd.bus.driver import Driver
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.ports import Ports
from xenbusd.bus.scan import Scan
from xenbusd.bus.services import Services
from xenbusd.bus.state import Side, State, parse_state
from xenbusd.errors import EventChannelError, GrantError, NodeNotFound, StoreLost, TransactionConflict
from xenbusd.host.interface import Copy, EventChannels, Grants, Host, Mapping, Share
from xenbusd.ids import PAGE_SIZE, Domid, Gref, Port
from xenbusd.store.watch import Watch

T = TypeVar("T")


class Silent:
    """A logger that says nothing, and remembers what should not have happened."""

    def __init__(self) -> None:
        self.crashes: list[str] = []

    def bind(self, **_: object) -> Silent:
        """Itself."""
        return self

    def debug(self, event: str, **_: object) -> None:
        """Nothing."""

    info = warning = debug

    def error(self, event: str, **values: object) -> None:
        """Keep it if it is a bug of ours."""
        if event in ("driver.crashed", "device.lost"):
            self.crashes.append(f"{event}: {values}")

    exception = error


class Loop(asyncio.SelectorEventLoop):
    """An event loop without a clock of its own, and without threads."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        """The time that the test has made it."""
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Do it here and now."""
        del executor
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def turn(self) -> None:
        """Run until nobody can go on."""
        ready = cast("deque[object]", vars(self)["_ready"])
        while ready:
            self.stop()
            self.run_forever()

    def next_timer(self) -> float | None:
        """When the next one is due."""
        timers = cast("list[asyncio.TimerHandle]", vars(self)["_scheduled"])
        return min((timer.when() for timer in timers if not timer.cancelled()), default=None)


# -- the store -----------------------------------------------------------------------------------------------------


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
    """One end's connection: requests are served in order, answers and events arrive in order, when the test says so."""

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


# -- the host ------------------------------------------------------------------------------------------------------


class Machine:
    """Who shares, maps and binds what."""

    def __init__(self) -> None:
        self.numbers = count(8)
        self.shared: dict[Gref, memoryview] = {}
        self.ports: dict[Port, Domid] = {}
        self.bound: dict[Port, Port] = {}
        """A backend's port -> the frontend's."""


class FakeShare(Share):
    """Pages of a frontend."""

    def __init__(self, host: FakeHost, pages: int) -> None:
        self.view = memoryview(bytearray(pages * PAGE_SIZE))
        self.grefs = tuple(Gref(next(host.machine.numbers)) for _ in range(pages))
        self._host = host
        for gref in self.grefs:
            host.machine.shared[gref] = self.view
        host.shares.append(self)

    def unshare(self) -> None:
        if self in self._host.shares:
            self._host.shares.remove(self)
            for gref in self.grefs:
                del self._host.machine.shared[gref]


class FakeMapping(Mapping):
    """A frontend's pages in the backend."""

    def __init__(self, host: FakeHost, gref: Gref) -> None:
        self.gref = gref
        self.view = host.machine.shared[gref][:]
        self._host = host
        host.mappings.append(self)

    def unmap(self) -> None:
        if self in self._host.mappings:
            self._host.mappings.remove(self)


class FakeHost(Host, Grants, EventChannels):
    """One process's door to the machine."""

    fd = -1

    def __init__(self, machine: Machine, domid: Domid) -> None:
        self.name = "fake"
        self.machine = machine
        self.domid = domid
        self.grants = self.events = self
        self.shares: list[FakeShare] = []
        self.mappings: list[FakeMapping] = []
        self.ports: list[Port] = []

    def map(self, domid: Domid, grefs: Sequence[Gref], *, writable: bool = True) -> FakeMapping:
        del writable
        if grefs[0] not in self.machine.shared:
            raise GrantError("xengnttab_map_grant_refs", errno.EINVAL, f"domain {domid}, {grefs}")
        return FakeMapping(self, grefs[0])

    def copy(self, segments: Sequence[Copy]) -> list[int]:
        return [0] * len(segments)

    def share(self, domid: Domid, pages: int, *, writable: bool = True) -> FakeShare:
        del domid, writable
        return FakeShare(self, pages)

    def alloc_unbound(self, domid: Domid) -> Port:
        del domid
        port = Port(next(self.machine.numbers))
        self.machine.ports[port] = self.domid
        self.ports.append(port)
        return port

    def bind_interdomain(self, domid: Domid, otherend_port: Port) -> Port:
        if self.machine.ports.get(otherend_port) != domid or otherend_port in self.machine.bound.values():
            raise EventChannelError("xenevtchn_bind_interdomain", errno.EINVAL, f"domain {domid}, {otherend_port}")
        port = Port(next(self.machine.numbers))
        self.machine.bound[port] = otherend_port
        self.ports.append(port)
        return port

    def notify(self, port: Port) -> None:
        del port

    def pending(self) -> list[Port]:
        return []

    def unmask(self, port: Port) -> None:
        del port

    def unbind(self, port: Port) -> None:
        if port in self.ports:
            self.ports.remove(port)
        self.machine.bound.pop(port, None)
        self.machine.ports.pop(port, None)
        for back, front in list(self.machine.bound.items()):
            if front == port:
                del self.machine.bound[back]

    def close(self) -> None:
        for share in list(self.shares):
            share.unshare()
        self.mappings.clear()
        for port in list(self.ports):
            self.unbind(port)


# -- the two ends --------------------------------------------------------------------------------------------------


class End:
    """One process: its connection to the store, its door to the machine, and the scan of its one class."""

    def __init__(self, world: World, side: Side, driver: Callable[[], Driver[Any]]) -> None:
        self.world = world
        self.side = side
        self.domid = world.id.backend_domid if side is Side.BACKEND else world.id.frontend_domid
        self.client = Client(world.store, world.loop)
        self.host = FakeHost(world.machine, self.domid)
        services = Services(
            store=cast("Any", self.client),
            host=self.host,
            ports=Ports(self.host),
            domid=self.domid,
            log=cast("Any", world.log),
            run_dir=world.run_dir.name,
        )
        self.scan = Scan(services, driver, world.id.device_class, side)
        self.task = world.loop.create_task(self.scan.run())
        self.stopping: asyncio.Task[None] | None = None
        world.loop.turn()

    @property
    def device(self) -> Device | None:
        """The device, while somebody lives through it."""
        return next(iter(self.scan.devices), None)

    def serve(self) -> bool:
        """Let the store see our next request."""
        if not self.client.requests:
            return False
        self.client.requests.popleft()()
        self.world.loop.turn()
        return True

    def deliver(self) -> bool:
        """Let the next answer or event arrive."""
        if not self.client.arrivals:
            return False
        self.client.arrivals.popleft()[1]()
        self.world.loop.turn()
        return True

    def kill(self) -> None:
        """SIGKILL: no last words. What it held of the machine's is taken back."""
        self.client.die()
        self.host.close()
        for task in [*self.scan.supervisor._tasks.values(), self.task, self.stopping]:
            if task is not None:
                task.cancel()
        self.world.loop.turn()

    def stop(self) -> None:
        """SIGTERM: every device begins to leave in order."""
        self.stopping = self.world.loop.create_task(self.scan.supervisor.stop())
        self.world.loop.turn()

    @property
    def stopped(self) -> bool:
        """Whether it has left in order."""
        return self.stopping is not None and self.stopping.done()


class World:
    """Everything: store, machine, clock, and the processes that are alive."""

    def __init__(self, id: DeviceId) -> None:
        self.id = id
        self.loop = Loop()
        self.store = Store()
        self.machine = Machine()
        self.log = Silent()
        self.run_dir = TemporaryDirectory(prefix="xenbusd-world-")
        """Where backends keep their journals."""
        self.ends: dict[Side, End] = {}

    def start(self, side: Side, driver: Callable[[], Driver[Any]]) -> None:
        """Start a process for one side."""
        self.ends[side] = End(self, side, driver)

    def state(self, side: Side) -> State:
        """What stands in an end's `state`."""
        return self.store.state(self.id.path(side))

    def steps(self) -> Iterator[Callable[[], bool]]:
        """All that could happen now without the clock."""
        for end in self.ends.values():
            yield end.serve
            yield end.deliver

    def tick(self) -> None:
        """Let the clock jump to the next timer."""
        due = self.loop.next_timer()
        if due is not None:
            self.loop.now = max(self.loop.now, due)
            self.loop.call_soon(lambda: None)
            self.loop.turn()

    def run(self, seconds: float) -> None:
        """Let everything happen that happens by itself, then time pass, until nothing is left or the time is up."""
        until = self.loop.now + seconds
        while True:
            while sum(step() for step in self.steps()):
                pass
            due = self.loop.next_timer()
            if due is None or due > until:
                self.loop.now = max(self.loop.now, until)
                return
            self.tick()

    def close(self) -> None:
        """End it all."""
        for end in self.ends.values():
            end.kill()
        self.ends.clear()
        self.loop.turn()
        self.loop.close()
        self.run_dir.cleanup()
