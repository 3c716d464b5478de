"""Both ends of a device on one event loop; the test steps its clock and its store.

The ends are the real ones: scans, supervisors, devices. Between them stands a store of which each request and each
answer is a step of its own, so that every interleaving of the two can be tried; and the clock jumps from timer to
timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory
from typing import Any, cast

from tests.doubles.shared_machine import FakeHost, Machine
from tests.doubles.stepped_loop import Loop
from tests.doubles.stepped_store import Client, Store
from xenbusd.bus.device import Device
from xenbusd.bus.driver import Driver
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.ports import Ports
from xenbusd.bus.scan import Scan
from xenbusd.bus.services import Services
from xenbusd.bus.state import Side, State


class Silent:
    """A logger that prints nothing, and keeps the events that only a bug causes."""

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


class End:
    """One process: its connection to the store, its host interface, and the scan of its one class."""

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
            state_dir=None,
        )
        self.scan = Scan(services, driver, world.id.device_class, side, owns_run_dir=True)
        self.task = world.loop.create_task(self.scan.run())
        self.stopping: asyncio.Task[None] | None = None
        world.loop.turn()

    @property
    def device(self) -> Device | None:
        """The device, while it exists."""
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
        """SIGKILL: no last words. The machine takes its pages and ports back."""
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
        """The value of an end's `state`."""
        return self.store.state(self.id.path(side))

    def steps(self) -> Iterator[Callable[[], bool]]:
        """All steps that are possible now without the clock."""
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
        """Take every step that needs no clock, then let time pass, until nothing is left or the time is up."""
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
