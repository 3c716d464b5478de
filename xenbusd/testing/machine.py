"""A machine with several domains, for tests: simulated host, store, drivers of both sides, and a toolstack's hand.

    async with Machine(folder) as machine:
        await machine.start(DOM0, MyBackend)
        guest = await machine.start(Domid(5), MyFrontend)
        id = machine.id("mine")
        await machine.attach(id)
        await machine.until(id, backend=State.CONNECTED, frontend=State.CONNECTED)
        ...
        await guest.kill()

Everything runs on the one event loop of the test, save the host itself, which has a thread of its own. So a test can
look into both ends at any moment. Nothing here sleeps: what has to be waited for is watched in the store, and
`DEADLINE_S` is there only to turn a hang into a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from xenbusd import log, toolstack
from xenbusd.bus.device import Device, HotplugRunner, Services
from xenbusd.bus.domains import follow_domains
from xenbusd.bus.driver import Driver
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.ports import Ports
from xenbusd.bus.scan import Scan
from xenbusd.bus.state import State
from xenbusd.errors import NodeNotFound
from xenbusd.host.interface import Host
from xenbusd.host.sim.client import SimHost, census
from xenbusd.host.sim.protocol import Holdings
from xenbusd.host.sim.thread import broker_in_thread
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid
from xenbusd.store.client import StoreClient
from xenbusd.testing.faults import Faults, FaultyHost, FaultyStore
from xenbusd.toolstack import PairState

DEADLINE_S = 20.0
"""How long anything may take before the test has failed."""

REACTION_STEPS = 24
"""Round trips that `settle` makes. A look takes one, a switch of state four; no reaction has more than a few."""

GUEST_WINDOW = 16
"""Requests in flight of a process that is not in domain 0, as in the agent."""


class Snapshot(NamedTuple):
    """What there is at one moment: for comparing before with after."""

    nodes: dict[str, bytes]
    """The store's nodes below /local and /libxl, with their values."""
    holdings: dict[Domid, Holdings]
    """What each domain has of grants, mappings and ports."""


class Process:
    """A process in a domain: its door to the machine, its session with the store, and the drivers that it runs.

    Without drivers it is what a hand-driven end needs; see `Peer`. Made by `Machine.start`.

    Args:
        host: the door.
        run_dir: where its drivers put sockets.
        options: each class's table of the configuration file.
        hotplug: who runs hotplug scripts; None: somebody else does.
        faults: what goes wrong for it.
    """

    def __init__(
        self,
        host: SimHost,
        run_dir: str,
        *,
        options: Mapping[str, Mapping[str, Any]],
        hotplug: HotplugRunner | None,
        faults: Faults | None = None,
    ) -> None:
        self.host = host
        self.domid = host.domid
        window = 0 if host.domid == DOM0 else GUEST_WINDOW
        self.store = (
            StoreClient(host.store, window=window) if faults is None else FaultyStore(host, faults, window=window)
        )
        if faults is not None:
            faults.on_cut = self._cut
        door: Host = host if faults is None else FaultyHost(host, faults)
        self.services = Services(
            store=self.store,
            host=door,
            ports=Ports(door.events),
            domid=host.domid,
            log=log.get().bind(domain=host.domid),
            hotplug=hotplug,
            options=options,
            run_dir=run_dir,
        )
        self.scans: list[Scan] = []
        self.alive = True
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def devices(self) -> list[Device]:
        """The devices that it lives through now."""
        return [dev for scan in self.scans for dev in scan.devices]

    def device(self, id: DeviceId) -> Device:
        """Its end of a device.

        Raises:
            LookupError: it has none.
        """
        for dev in self.devices:
            if dev.id == id:
                return dev
        raise LookupError(f"the process in domain {self.domid} has no device {id}")

    def run_path(self, id: DeviceId, suffix: str) -> str:
        """Where its frontend's driver puts what it calls `dev.run_path(suffix)`."""
        return f"{self.services.run_dir}/{id.device_class}-{id.devid}.{suffix}"

    def story(self, id: DeviceId) -> list[tuple[str, str]]:
        """What it saw happen to a device, in order: (actor, event), such as ("backend", "InitWait").

        The states of its own end are all there; of the other end's it has those that it saw.
        """
        timeline = self.services.timelines.get(str(id))
        return [(entry.actor, entry.event) for entry in timeline.entries] if timeline is not None else []

    def states(self, id: DeviceId, actor: str) -> list[str]:
        """The states that one end went through, as this process saw it: ["Initialising", "InitWait", ...]."""
        titles = {state.title for state in State}
        return [event for who, event in self.story(id) if who == actor and event in titles]

    async def open(self, drivers: tuple[type[Driver[Any]], ...]) -> None:
        """Connect to the store and begin to follow the drivers' classes."""
        await self.store.open()
        self.services.ports.start()
        self.scans = [Scan(self.services, driver, driver.device_class, driver.side) for driver in drivers]
        self._tasks = [asyncio.create_task(scan.run()) for scan in self.scans]
        if self.scans:
            self._tasks.append(asyncio.create_task(follow_domains(self.store, self.scans)))

    async def settle(self) -> None:
        """Let its devices react to all that stands in the store now.

        For showing that something does *not* happen. It asks the store in its own session, where an event comes
        before each later answer, as often as any reaction has steps. What runs in a thread is not waited for.
        """
        for _ in range(REACTION_STEPS):
            await self.store.read("domid")
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let its devices react until something holds that only this process knows, and no node tells.

        Raises:
            AssertionError: it never does.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    await self.settle()
        except TimeoutError:
            raise AssertionError(f"the process in domain {self.domid} did not get there: {self.devices}") from None

    async def stop(self) -> None:
        """End in order, as the daemon does on SIGTERM. Idempotent."""
        if not self.alive:
            return
        self.alive = False
        await asyncio.gather(*(scan.supervisor.stop() for scan in self.scans))
        await self._end_tasks()
        self.services.ports.stop()
        await self.store.close()
        self.host.close()

    async def kill(self) -> None:
        """End as by SIGKILL: door and store are shut before anything of ours can run once more. Idempotent.

        Returns once the host has taken back what the process held. The last process of a domain takes it along.
        """
        if not self.alive:
            return
        self.alive = False
        self._cut()
        await self.store.close()
        await asyncio.gather(*(scan.supervisor.stop() for scan in self.scans))
        await self._end_tasks()

    def _cut(self) -> None:
        """Shut the door at once."""
        for dev in self.devices:
            dev.stopping = True  # what still unwinds here is no news for the log
        self.services.ports.stop()
        self.host.close()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        crashes = [end for end in ends if isinstance(end, Exception)]
        if crashes and self.store.closed is False:
            raise crashes[0]


class Machine:
    """A simulated host with what a test puts on it. Use it as `async with`.

    Args:
        folder: for sockets; its path should be short, as paths of UNIX sockets are.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.socket = str(self.folder / "host")
        """Where the simulated host answers, for `--host sim:` of a real daemon as well."""
        self.processes: list[Process] = []
        self._thread = ExitStack()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        # The host's thread ends after everything on this loop has.
        self._thread.enter_context(broker_in_thread(self.socket))
        try:
            self.toolstack = await self.start(DOM0)
            await self.toolstack.store.mkdir("/local/domain/0/error")  # as in any dom0 that has had one error
        except BaseException:
            self._thread.close()
            raise
        self.store = self.toolstack.store
        """A session of domain 0, in which nothing is forbidden: the toolstack's."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for process in reversed(self.processes):
                await process.kill()
        finally:
            self._thread.close()

    async def start(
        self,
        domid: Domid,
        *drivers: type[Driver[Any]],
        options: Mapping[str, Mapping[str, Any]] | None = None,
        hotplug: HotplugRunner | None = None,
        faults: Faults | None = None,
    ) -> Process:
        """Start a process in a domain; the first one brings the domain to life.

        Args:
            domid: which domain.
            drivers: what it runs: backends in domain 0 or a driver domain, frontends in a guest. None: a hand-driven
                end's process.
            options: for each class, what `[drivers.<class>]` would hold.
            hotplug: runs the scripts of its backends.
            faults: what goes wrong for it.
        """
        run_dir = self.folder / str(domid)
        run_dir.mkdir(exist_ok=True)
        host = SimHost(self.socket, domid)
        process = Process(host, str(run_dir), options=options or {}, hotplug=hotplug, faults=faults)
        self.processes.append(process)
        await process.open(drivers)
        return process

    async def kill(self, domid: Domid) -> None:
        """Destroy a domain with all its processes."""
        for process in self.processes:
            if process.domid == domid:
                await process.kill()

    # -- what a toolstack does -------------------------------------------------------------------------------------

    @staticmethod
    def id(device_class: str, domid: int = 5, devid: int = 0, backend: int = 0) -> DeviceId:
        """Name a device: by default number 0 of domain 5, with its backend in domain 0."""
        return DeviceId(DeviceClass(device_class), Domid(domid), Devid(devid), Domid(backend))

    async def attach(
        self, id: DeviceId, back: Mapping[str, str] | None = None, front: Mapping[str, str] | None = None
    ) -> None:
        """Make both directories, as xl does, and do not wait for anything."""
        await toolstack.attach(self.store, id, back or {}, front or {})

    async def detach(self, id: DeviceId, *, force: bool = False) -> None:
        """Take the pair apart, as `xl block-detach` does, and wait until that is done."""
        await toolstack.detach(self.store, id, force=force, deadline_s=DEADLINE_S)

    async def ask_to_close(self, id: DeviceId) -> None:
        """Do only the first step of a detach: `online` 0 and `state` 5 in the backend's directory."""
        await self.write(id.backend_path, online="0", state="5")

    async def write(self, path: str, **keys: str) -> None:
        """Write keys of a directory, in one transaction; hotplug_status stands for `hotplug-status`."""
        async with asyncio.timeout(DEADLINE_S):
            await self.store.transaction(
                lambda tx: asyncio.gather(
                    *(tx.write(f"{path}/{key.replace('_', '-')}", value) for key, value in keys.items())
                )
            )

    async def until(
        self,
        id: DeviceId,
        *,
        backend: State | tuple[State, ...] | None = None,
        frontend: State | tuple[State, ...] | None = None,
    ) -> PairState:
        """Wait until both ends are at given states.

        Args:
            backend: a state, or several of which any will do; None: whatever it is.
            frontend: likewise.

        Raises:
            AssertionError: they do not get there; it says where they are.
        """
        seen: PairState | None = None
        try:
            async with asyncio.timeout(DEADLINE_S), toolstack.following(self.store, id) as next_state:
                while True:
                    seen = await next_state()
                    if _is_at(seen.backend, backend) and _is_at(seen.frontend, frontend):
                        return seen
        except TimeoutError:
            raise AssertionError(f"{id} should get to backend={backend} frontend={frontend}, but is {seen}") from None

    async def connected(self, id: DeviceId) -> PairState:
        """Wait until both ends are Connected."""
        return await self.until(id, backend=State.CONNECTED, frontend=State.CONNECTED)

    # -- what is there ---------------------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """Take down what is in the store and what each domain holds; equal before and after: nothing has leaked."""
        nodes: dict[str, bytes] = {}
        for root in ("/local", "/libxl"):
            await self._collect(root, nodes)
        return Snapshot(nodes, census(self.socket))

    def holdings(self, domid: Domid) -> Holdings:
        """What a domain holds now: pages granted, those of them that others have mapped, ports."""
        return census(self.socket).get(domid, Holdings(domid, 0, 0, 0, 0, 0))

    async def nodes(self, path: str) -> dict[str, bytes]:
        """Every node at and below a path."""
        found: dict[str, bytes] = {}
        await self._collect(path, found)
        return found

    async def read(self, path: str) -> bytes | None:
        """Read a node as domain 0; None if it is not there."""
        try:
            return await self.store.read(path)
        except NodeNotFound:
            return None

    async def _collect(self, path: str, into: dict[str, bytes]) -> None:
        value = await self.read(path)
        if value is not None:
            into[path] = value
            for name in await self.store.directory(path):
                await self._collect(f"{path}/{name}", into)


def _is_at(state: State, wanted: State | tuple[State, ...] | None) -> bool:
    return wanted is None or state in (wanted if isinstance(wanted, tuple) else (wanted,))
