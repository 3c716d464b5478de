"""One machine on which a driver pair is put through something: a backend daemon, an honest neighbour pair that must
never notice, and the pair under test; and in the end a look at whether anything is left of it."""

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
"""How a use fails while the device is not there yet, or just not any more."""

BUGS = frozenset({"driver.crashed", "device.lost"})
"""Log events that no misfortune and no peer may cause."""


class PairUnderTest:
    """What a trial must know of a driver pair. `backend` and `frontend` must be given; the rest has defaults."""

    backend: ClassVar[type[Backend]]
    frontend: ClassVar[type[Frontend]]
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What `[drivers.<class>]` of the configuration file would say, by class."""

    def devid(self, number: int) -> Devid:
        """The class's n-th device number, from 0."""
        return Devid(number)

    def parameters(self, folder: Path) -> Mapping[str, str]:
        """What `xenbusctl attach` would be given for a device. `folder` is the device's own, and stays with it."""
        del folder
        return {}

    async def use(self, guest: Process, id: DeviceId) -> None:
        """Use a connected device as a program of the guest does; raise AssertionError, EOFError or OSError if it does
        not work. Nobody is harmed by a use that is repeated."""


@dataclass(frozen=True)
class Remains:
    """All that a device could leave behind."""

    snapshot: Snapshot
    tasks: Counter[str]
    files: Counter[str]
    """What the descriptors of this process lead to, the simulated host's among them."""
    paths: list[str]
    """In the run directories of the domains that are alive."""


class Trial:
    """Made by `trial`.

    Args:
        pair: what is tried.
        machine: just started.
        log: where log entries arrive.
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
        """Start both daemons, the faults being one end's. Return the backend's and the frontend's."""
        return (
            await self.serve(faults if side is Side.BACKEND else None),
            await self.agent(GUEST, faults if side is Side.FRONTEND else None),
        )

    async def agent(self, domid: Domid = GUEST, faults: Faults | None = None) -> Process:
        """Start a frontend daemon."""
        return await self._start(domid, self.pair.frontend, faults)

    async def _start(self, domid: Domid, driver: type[Driver[Any]], faults: Faults | None) -> Process:
        process = await self.machine.start(domid, driver, options=self.pair.options, faults=faults)
        await process.settle()  # its own beginning is over: each step from now on is a device's
        return process

    def id(self, number: int = 0, domid: Domid = GUEST, backend: Domid = DOM0) -> DeviceId:
        """The n-th device of a domain."""
        return DeviceId(DeviceClass(self.pair.backend.device_class), domid, self.pair.devid(number), backend)

    async def attach(self, number: int = 0, domid: Domid = GUEST, backend: Domid = DOM0) -> DeviceId:
        """Attach a device as `xenbusctl attach` does, and do not wait."""
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
        """Use a device that is coming back: again and again, until it works.

        Raises:
            AssertionError: it never does; the last reason is its cause.
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
        """Detach a device if it is there."""
        with suppress(UsageError):
            await self.machine.detach(id, force=force)

    async def _where(self, id: DeviceId) -> str:
        nodes = {**await self.machine.nodes(id.backend_path), **await self.machine.nodes(id.frontend_path)}
        return f"{nodes}; logged: {self.log[-12:]}"

    # -- what is left ----------------------------------------------------------------------------------------------

    async def remains(self) -> Remains:
        """Take stock of all that there is, once it no longer changes: what ended a moment ago may still be closing."""
        gc.collect()  # closes what nothing refers to any more
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
        """Wait until all is again as it was.

        Raises:
            AssertionError: it never is; it says what is left.
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
        """What was logged that can only be a bug of the driver's or of ours."""
        return [entry for entry in self.log if entry["event"] in BUGS]


@asynccontextmanager
async def trial(pair: PairUnderTest) -> AsyncIterator[Trial]:
    """Give a test a machine, whose folder has a short name, and whose log is kept instead of printed.

    The loop's debug mode is off meanwhile: it takes down a stack for each future, which is most of the time of a check
    that goes through thousands of steps.
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

    In the end the pair works as it did, and its backend has not moved: what happened in between did no harm.
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
    """Run something until it is done, or until a fault strikes: then it is given up.

    Raises:
        Exception: what `life` raises by itself.
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
    """Call with 1, 2, 3, ... until it returns True: nothing was struck any more, there are no more steps.

    Returns:
        How many there were; fewer than `least` would mean that nothing was tried.
    """
    step = 1
    while not await try_step(step):
        step += 1
    assert step > least, f"only {step - 1} steps were tried"
    return step - 1


def _difference(before: Remains, now: Remains) -> str:
    """What is there now and was not, or was and is not."""

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
