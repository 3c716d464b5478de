"""A machine for one check of a driver pair: the pair under test, a backend daemon, and an honest neighbour pair that
must not be affected. At its end, `Trial.nothing_left` finds everything that the pair has left behind.

Decisions: D28, D69.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from structlog.testing import capture_logs

from xenbusd.bus.driver import Backend, Driver, Frontend
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid
from xenbusd.testing.faults import Faults
from xenbusd.testing.machine import DEADLINE_S, Machine, Process, Snapshot

GUEST = Domid(5)
"""The domain of the pair under test."""
NEIGHBOUR = Domid(6)
DRIVER_DOMAIN = Domid(7)

QUIET_S = DEADLINE_S
"""Seconds within which everything that has just ended must be closed."""

NOT_YET = (OSError, EOFError, AssertionError)
"""The errors of `use` while its device is not there yet, or has just gone."""

BUGS = frozenset({"driver.crashed", "device.lost"})
"""Log events that no failure and no peer may cause."""


class PairUnderTest:
    """A driver pair, described for the checks. `backend` and `frontend` must be given; the rest has defaults."""

    backend: ClassVar[type[Backend]]
    frontend: ClassVar[type[Frontend]]
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """For each class, its table `[drivers.<class>]` of the configuration file."""

    def devid(self, number: int) -> Devid:
        """The class's n-th device number, from 0."""
        return Devid(number)

    def parameters(self, folder: Path) -> Mapping[str, str]:
        """The parameters of `xenbusctl attach` for a device. `folder` belongs to the device, and is kept
        for it."""
        del folder
        return {}

    async def use(self, guest: Process, id: DeviceId) -> None:
        """Use a connected device as a program of the guest does. It must be possible to use it again and again.

        Raises:
            AssertionError, EOFError, OSError: the device does not work, or not yet: where it may be reconnecting, the
                checks try again. Raise one of these for an empty answer, too, before it is parsed: any other exception,
                such as the ValueError of `int(b"")`, ends the check.
        """


@dataclass(frozen=True)
class Remains:
    """Everything that a device could leave behind. If it is equal before and after, nothing was left open, and nothing
    else was closed."""

    snapshot: Snapshot
    tasks: Counter[str]
    files: Counter[str]
    """Targets of this process's descriptors, with the numbers left out; the simulated host's descriptors are among
    them."""
    paths: list[str]
    """Files in the run directories of the domains that are alive."""


class Trial:
    """Made by `trial`.

    Args:
        pair: the pair under test.
        machine: a machine that has just been started.
        log: gets each log entry.
    """

    def __init__(self, pair: PairUnderTest, machine: Machine, log: list[Any]) -> None:
        self.pair = pair
        self.machine = machine
        self.log = log
        self._images = machine.folder / "for-devices"
        self._images.mkdir()

    # -- making and using ------------------------------------------------------------------------------------------

    async def serve(self, faults: Faults | None = None, domid: Domid = DOM0) -> Process:
        """Start a backend daemon."""
        return await self._start(domid, self.pair.backend, faults)

    async def pair_with(self, side: Side, faults: Faults) -> tuple[Process, Process]:
        """Start both daemons, with faults in that of one side. Return the backend's and the frontend's."""
        return (
            await self.serve(faults if side is Side.BACKEND else None),
            await self.agent(GUEST, faults if side is Side.FRONTEND else None),
        )

    async def agent(self, domid: Domid = GUEST, faults: Faults | None = None) -> Process:
        """Start a frontend daemon."""
        return await self._start(domid, self.pair.frontend, faults)

    async def _start(self, domid: Domid, driver: type[Driver[Any]], faults: Faults | None) -> Process:
        process = await self.machine.start(domid, driver, options=self.pair.options, faults=faults)
        await process.settle()  # its own start is over: each step from now on is one of a device
        return process

    def id(self, number: int = 0, domid: Domid = GUEST, backend: Domid = DOM0) -> DeviceId:
        """The n-th device of a domain."""
        return DeviceId(DeviceClass(self.pair.backend.device_class), domid, self.pair.devid(number), backend)

    async def attach(self, number: int = 0, domid: Domid = GUEST, backend: Domid = DOM0) -> DeviceId:
        """Attach a device as `xenbusctl attach` does, without waiting for it."""
        id = self.id(number, domid, backend)
        folder = self._images / f"{domid}-{number}"
        folder.mkdir(exist_ok=True)
        keys = self.pair.backend.directories(id.devid, self.pair.parameters(folder))
        await self.machine.attach(id, keys.backend, keys.frontend)
        return id

    async def connect(self, guest: Process, number: int = 0) -> DeviceId:
        """Attach a device, wait until it is connected, and use it."""
        id = await self.attach(number, guest.domid)
        await self.reach_use(guest, id)
        return id

    async def reach_use(self, guest: Process, id: DeviceId) -> None:
        """Wait until a device is connected, and use it."""
        await self.machine.connected(id)
        await self.pair.use(guest, id)

    async def works(self, guest: Process, id: DeviceId) -> None:
        """Try to use a device that is reconnecting, until it works.

        Raises:
            AssertionError: it does not work within the deadline; the last failure is the cause.
        """
        reason: Exception | None = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    await self.machine.connected(id)
                    try:
                        await self.pair.use(guest, id)
                    except NOT_YET as error:
                        reason = error
                        await guest.settle()
                    else:
                        return
        except TimeoutError:
            raise AssertionError(f"{id} does not come back: {reason!r}; {await self._where(id)}") from reason

    async def remove(self, id: DeviceId, *, force: bool = False) -> None:
        """Detach a device if it exists."""
        with suppress(UsageError):
            await self.machine.detach(id, force=force)

    async def _where(self, id: DeviceId) -> str:
        nodes = {**await self.machine.nodes(id.backend_path), **await self.machine.nodes(id.frontend_path)}
        return f"{nodes}; logged: {self.log[-12:]}"

    # -- taking stock ----------------------------------------------------------------------------------------------

    async def remains(self) -> Remains:
        """Take stock of everything, once it no longer changes: objects that ended a moment ago may still be closing."""
        gc.collect()  # closes objects that nothing refers to any more
        now = await self._take_stock()
        async with asyncio.timeout(QUIET_S):
            while True:
                await self._settle()
                before, now = now, await self._take_stock()
                if now == before:
                    return now

    async def _settle(self) -> None:
        for process in self.machine.processes:
            if process.alive:
                await process.settle()

    async def _take_stock(self) -> Remains:
        folders = {Path(process.services.run_dir) for process in self.machine.processes if process.alive}
        return Remains(
            await self.machine.snapshot(),
            Counter(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()),
            Counter(_open_files()),
            sorted(str(path) for folder in folders for path in folder.rglob("*")),
        )

    async def nothing_left(self, before: Remains) -> None:
        """Wait until `remains` is equal to `before`.

        Raises:
            AssertionError: it is still different at the deadline; the message has the difference.
        """
        now = await self._take_stock()
        with suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while now != before:
                    await self._settle()
                    now = await self._take_stock()
        assert now == before, f"this is left: {_difference(before, now)}; logged: {self.log[-12:]}"
        assert self.bugs() == []

    def bugs(self) -> list[Any]:
        """Log entries that only a bug, of the driver's or of ours, can cause."""
        return [entry for entry in self.log if entry["event"] in BUGS]


@asynccontextmanager
async def trial(pair: PairUnderTest) -> AsyncIterator[Trial]:
    """Start a machine for one check. Its folder has a short name, and its log is kept instead of printed.

    The event loop's debug mode is off meanwhile: it records a stack for each future, which would be most of the time of
    a check that goes through thousands of steps.
    """
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        stack.callback(loop.set_debug, loop.get_debug())
        loop.set_debug(False)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="xb"))
        log = stack.enter_context(capture_logs())
        machine = await stack.enter_async_context(Machine(folder))
        yield Trial(pair, machine, log)


@asynccontextmanager
async def neighbours(trial: Trial, back: Process) -> AsyncIterator[Process]:
    """Connect an honest pair in another domain to the same backend daemon; yield that domain's agent.

    At the end of the block that pair must still work, and its backend must not have changed its state.
    """
    agent = await trial.agent(NEIGHBOUR)
    id = await trial.connect(agent)
    states = back.states(id, "backend")
    yield agent
    await trial.pair.use(agent, id)
    assert back.states(id, "backend") == states == ["Initialising", "InitWait", "Connected"]
    assert trial.bugs() == []
    await trial.machine.detach(id)
    await agent.stop()


async def outlived(life: Coroutine[Any, Any, object], struck: asyncio.Event) -> None:
    """Run a coroutine until it is done, or until a fault strikes; the fault cancels it.

    Raises:
        Exception: raised by `life`, unless a fault has struck.
    """
    living, striking = asyncio.create_task(life), asyncio.create_task(struck.wait())
    try:
        await asyncio.wait({living, striking}, return_when=asyncio.FIRST_COMPLETED)
        if not struck.is_set():
            await living
    finally:
        for task in (living, striking):
            task.cancel()
        await asyncio.gather(living, striking, return_exceptions=True)


async def each_step(try_step: Callable[[int], Awaitable[bool]], least: int = 1) -> int:
    """Call `try_step` with 1, 2, 3, ... until it returns True, which means that there are no more steps.

    Returns:
        The number of steps; no more than `least` would mean that nothing was tried, and is an AssertionError.
    """
    step = 1
    while not await try_step(step):
        step += 1
    assert step > least, f"only {step - 1} steps were tried"
    return step - 1


def _difference(before: Remains, now: Remains) -> str:
    """Describe the difference: the things that are new, and the things that are gone."""

    def words(remains: Remains) -> set[str]:
        nodes, holdings = remains.snapshot
        return {
            *(f"{path} = {value!r}" for path, value in nodes.items()),
            *map(str, holdings.values()),
            *(f"{count} tasks in {name}" for name, count in remains.tasks.items()),
            *(f"{count} descriptors of {name}" for name, count in remains.files.items()),
            *remains.paths,
        }

    was, there = words(before), words(now)
    return f"{sorted(there - was)} instead of {sorted(was - there)}"


def _open_files() -> list[str]:
    names = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            names.append(re.sub(r"\d+", "", os.readlink(f"/proc/self/fd/{entry}")))
    return names
