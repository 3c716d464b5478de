"""A machine with several domains, for tests: simulated host, store, drivers of both sides, and the acts of a toolstack.

    async with Machine(folder) as machine:
        await machine.start(DOM0, MyBackend)
        guest = await machine.start(Domid(5), MyFrontend)
        id = machine.id("mine")
        await machine.attach(id)
        await machine.until(id, backend=State.CONNECTED, frontend=State.CONNECTED)
        ...
        await guest.kill()

Everything runs on the one event loop of the test, except the host, which has a thread of its own: a test can inspect
both ends at any moment. Nothing here sleeps. Each wait is for a watch event of the store; `DEADLINE_S` turns a hang
into a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from xenbusd import toolstack
from xenbusd.bus.driver import Driver
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.services import HotplugRunner
from xenbusd.bus.state import State
from xenbusd.errors import NodeNotFound
from xenbusd.host.sim.client import SimHost, census
from xenbusd.host.sim.protocol import Holdings
from xenbusd.host.sim.thread import broker_in_thread
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid
from xenbusd.testing.faults import Faults
from xenbusd.testing.process import DEADLINE_S, Process
from xenbusd.toolstack import PairState

__all__ = ["DEADLINE_S", "Machine", "Process", "Snapshot"]


class Snapshot(NamedTuple):
    """The store and every domain's holdings at one moment, to compare the state before with that after."""

    nodes: dict[str, bytes]
    """The store's nodes below /local and /libxl, with their values."""
    holdings: dict[Domid, Holdings]
    """The grants, mappings and ports that each domain has."""


class Machine:
    """A simulated host and the processes that a test starts on it. Use it as `async with`.

    Args:
        folder: for sockets; its path should be short, as paths of UNIX sockets are.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.socket = str(self.folder / "host")
        """Where the simulated host answers, for `--host sim:` of a real daemon as well."""
        self.processes: list[Process] = []
        self._thread = ExitStack()

    async def __aenter__(self) -> Self:
        # The host's thread ends after everything on this loop has.
        self._thread.enter_context(broker_in_thread(self.socket))
        try:
            self.toolstack = await self.start(DOM0)
            await self.toolstack.store.mkdir("/local/domain/0/error")  # any dom0 that has had an error has it
        except BaseException:
            self._thread.close()
            raise
        self.store = self.toolstack.store
        """The toolstack: a session of domain 0, which may do anything."""
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
            drivers: those that it runs: backends in domain 0 or a driver domain, frontends in a guest. Without any, it
                is the process of a hand-driven end.
            options: for each class, the contents of its table `[drivers.<class>]`.
            hotplug: runs the scripts of its backends.
            faults: the errors to inject into its calls.
        """
        run_dir = self.folder / str(domid)
        run_dir.mkdir(exist_ok=True)
        host = SimHost(self.socket, domid)
        process = Process(host, drivers, str(run_dir), options=options or {}, hotplug=hotplug, faults=faults)
        self.processes.append(process)
        await process.open()
        return process

    async def kill(self, domid: Domid) -> None:
        """Destroy a domain with all its processes."""
        for process in self.processes:
            if process.domid == domid:
                await process.kill()

    # -- a toolstack's acts -------------------------------------------------------------------------------------

    @staticmethod
    def id(device_class: str, domid: int = 5, devid: int = 0, backend: int = 0) -> DeviceId:
        """Name a device: by default number 0 of domain 5, with its backend in domain 0."""
        return DeviceId(DeviceClass(device_class), Domid(domid), Devid(devid), Domid(backend))

    async def attach(
        self, id: DeviceId, back: Mapping[str, str] | None = None, front: Mapping[str, str] | None = None
    ) -> None:
        """Make both directories, as xl does; return without waiting."""
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
            backend: a state, or several, any of which is accepted; None: any state.
            frontend: likewise.

        Raises:
            AssertionError: they do not reach these states within the deadline; the message has their states.
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

    # -- taking stock ---------------------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """Record the store and what each domain holds; equal before and after means that nothing has leaked."""
        nodes: dict[str, bytes] = {}
        for root in ("/local", "/libxl"):
            await self._collect(root, nodes)
        return Snapshot(nodes, census(self.socket))

    def holdings(self, domid: Domid) -> Holdings:
        """A domain's holdings now: pages granted, those of them that others have mapped, ports."""
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
