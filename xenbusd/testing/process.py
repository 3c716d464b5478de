"""One process on a simulated host, for tests: its drivers, its store session, and the ways in which it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from xenbusd import log
from xenbusd.bus.device import Device
from xenbusd.bus.driver import Driver
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.runtime import Runtime, store_window
from xenbusd.bus.services import HotplugRunner
from xenbusd.bus.state import Side, State
from xenbusd.host.interface import Host
from xenbusd.host.sim.client import SimHost
from xenbusd.store.client import StoreClient
from xenbusd.testing.faults import Faults, FaultyHost, FaultyStore

DEADLINE_S = 20.0
"""Seconds that any wait may take before the test has failed."""

REACTION_STEPS = 24
"""Round trips that `settle` makes. To observe a device takes one round trip, to switch its state four; no reaction has
more than a few of these steps."""


class Process:
    """A process in a domain: its interface to the host, its session with the store, and the drivers that it runs.

    Made by `Machine.start`. Without drivers it is the process of a hand-driven end; see `Peer`.

    Args:
        host: the simulated host, opened for this process alone.
        drivers: the drivers that it runs.
        run_dir: the directory for its drivers' sockets and journals.
        options: each class's table of the configuration file.
        hotplug: runs hotplug scripts; None: this process runs none.
        faults: the errors to inject into its calls.
    """

    def __init__(
        self,
        host: SimHost,
        drivers: Iterable[type[Driver[Any]]],
        run_dir: str,
        *,
        options: Mapping[str, Mapping[str, Any]],
        hotplug: HotplugRunner | None,
        faults: Faults | None = None,
    ) -> None:
        self.host = host
        self.domid = host.domid
        window = store_window(host.domid)
        self.store = (
            StoreClient(host.store, window=window) if faults is None else FaultyStore(host, faults, window=window)
        )
        if faults is not None:
            faults.on_cut = self._cut
        interface: Host = host if faults is None else FaultyHost(host, faults)
        self.runtime = Runtime(
            self.store,
            interface,
            drivers,
            domid=host.domid,
            log=log.get().bind(domain=host.domid),
            run_dir=run_dir,
            owns_run_dir=True,
            state_dir=run_dir,
            options=options,
            hotplug=hotplug,
        )
        self.services = self.runtime.services
        self.alive = True

    @property
    def devices(self) -> list[Device]:
        """Its ends of devices that have a task now."""
        return self.runtime.devices

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
        """The path that its frontend's driver gets from `dev.run_path(suffix)`."""
        return id.run_path(Side.FRONTEND, self.services.run_dir, suffix)

    def story(self, id: DeviceId) -> list[tuple[str, str]]:
        """The events of a device that this process saw, in order: (actor, event), such as ("backend", "InitWait").

        All states of its own end are included; of the other end's, those that it saw.
        """
        timeline = self.services.timelines.get(id)
        return [(entry.actor, entry.event) for entry in timeline.entries] if timeline is not None else []

    def states(self, id: DeviceId, actor: str) -> list[str]:
        """The states that one end went through, as this process saw it: ["Initialising", "InitWait", ...]."""
        titles = {state.title for state in State}
        return [event for who, event in self.story(id) if who == actor and event in titles]

    async def open(self) -> None:
        """Connect to the store and begin to follow the drivers' classes."""
        await self.store.open()
        self.runtime.start()

    async def settle(self) -> None:
        """Let its devices react to everything that is in the store now.

        For showing that something does *not* happen. It makes round trips to the store in the process's own session,
        where an event comes before each later answer: as many as any reaction has steps. It does not wait for work in a
        thread.
        """
        for _ in range(REACTION_STEPS):
            await self.store.read("domid")
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let its devices react until a condition holds that only this process can see, because no node shows it.

        Raises:
            AssertionError: the condition does not hold within the deadline.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    await self.settle()
        except TimeoutError:
            raise AssertionError(f"the process in domain {self.domid} did not get there: {self.devices}") from None

    async def stop(self) -> None:
        """End in order, as the daemon does on SIGTERM. Idempotent.

        Raises:
            Exception: an error that had ended a task of its runtime.
        """
        if not self.alive:
            return
        self.alive = False
        try:
            await self.runtime.stop()
        finally:
            await self.store.close()
            self.host.close()

    async def kill(self) -> None:
        """End as by SIGKILL: host and store are closed before any code of the process can run again. Idempotent.

        Returns once the host has taken back everything that the process held. The domain ends with its last process.
        """
        if not self.alive:
            return
        self.alive = False
        self._cut()
        await self.store.close()
        await self.runtime.stop()

    def _cut(self) -> None:
        """Close the host at once."""
        self.runtime.cut()
        self.host.close()
