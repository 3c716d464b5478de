"""A daemon process, for both roles: backends in dom0 or a driver domain, frontends in a guest.

`bus.runtime.Runtime` runs the devices. This module adds the parts of a service: signals, readiness and the watchdog,
the control socket, the run directory, and arbiter mode.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from xenbusd import log, registry
from xenbusd.arbiter.arbiter import RELEASE_S, Arbiter, restore
from xenbusd.arbiter.kernel_bus import KernelBus
from xenbusd.bus.device import Device
from xenbusd.bus.driver import Driver
from xenbusd.bus.runtime import Runtime, store_window
from xenbusd.bus.state import Side
from xenbusd.config import Config
from xenbusd.control.provider import OwnDevices
from xenbusd.control.server import ControlServer
from xenbusd.errors import StoreLost, UsageError
from xenbusd.host.interface import Host
from xenbusd.hotplug import ScriptRunner
from xenbusd.ids import DOM0, DeviceClass, Domid
from xenbusd.process import notify
from xenbusd.process.descriptors import allow_many
from xenbusd.process.listener import answers
from xenbusd.registry import Claims
from xenbusd.store.client import StoreClient


class Daemon:
    """One `xenbusd serve` or `xenbusd agent` process, with all its parts.

    Args:
        side: backends or frontends.
        host: the interface to the machine; closed by its owner.
        config: from file and command line.
        kernel_bus: where Linux's own backends are, for arbiter mode.
    """

    def __init__(self, side: Side, host: Host, config: Config, kernel_bus: KernelBus | None = None) -> None:
        self.side: Side = side
        self.host = host
        self.config = config
        self.log = log.get()
        self.runtime: Runtime | None = None
        """Set once the store has answered."""
        self.ready = asyncio.Event()
        """Set once every device class is watched."""
        self._kernel_bus = kernel_bus or KernelBus()
        self._stop = asyncio.Event()
        self._notifier = notify.Notifier()

    @property
    def devices(self) -> list[Device]:
        """All devices that have a task now."""
        return self.runtime.devices if self.runtime is not None else []

    def stop(self) -> None:
        """End `run` in order."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT.

        Raises:
            StoreLost: no store answers at the start.
            DriverError: a driver is missing or bad.
            UsageError: another daemon has this run directory, or arbiter mode is not possible here.
        """
        check_arbiter(self.side, self.config)
        drivers = registry.find(self.side, self.config.daemon.classes)
        for name, driver in drivers.items():
            driver.check_options(self.config.driver(name))
        allow_many()
        async with AsyncExitStack() as stack:
            store = StoreClient(self.host.store)
            store.on_lost = lambda reason: self.log.error("store.lost", reason=reason)
            store.on_back = lambda: self.log.info("store.back")
            await stack.enter_async_context(store)
            domid = Domid(int(await store.read("domid")))
            store.set_window(store_window(domid))
            arbiter = None
            if self.config.daemon.arbiter:
                arbiter = Arbiter(self._kernel_bus, store, domid, Claims.of(drivers, shared=True), self.log)
            self.runtime = runtime = Runtime(
                store,
                self.host,
                drivers.values(),
                domid=domid,
                log=self.log,
                run_dir=make_run_dir(self.config.run_dir(domid)),
                owns_run_dir=True,
                state_dir=self.config.state_dir(domid),
                options=self.config.drivers,
                hotplug=self._script_runner(drivers) if self.side is Side.BACKEND else None,
                is_ours=arbiter.is_ours if arbiter is not None else None,
            )
            control = ControlServer(OwnDevices(self, runtime.services, domid))
            await control.listen(self.config.control_socket(domid))
            stack.push_async_callback(control.close)
            if arbiter is not None:
                await stack.enter_async_context(arbiter.arbitrating())
            await self._serve(runtime, domid, arbiter)

    def _script_runner(self, drivers: Mapping[DeviceClass, type[Driver[Any]]]) -> ScriptRunner:
        config = self.config.hotplug
        return ScriptRunner(
            timeout_s=config.timeout_s,
            store_socket=self.host.store.socket_path,
            log=self.log,
            scripts_dir=config.scripts_dir,
            drivers=drivers,
        )

    async def _serve(self, runtime: Runtime, domid: Domid, arbiter: Arbiter | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            async with asyncio.TaskGroup() as group:
                runtime.start()
                tasks = [group.create_task(runtime.failed()), group.create_task(self._notifier.keep_alive())]
                if arbiter is not None:
                    tasks.append(group.create_task(arbiter.run()))
                names = " ".join(scan.device_class for scan in runtime.scans)
                self.log.info("daemon.started", side=self.side.value, domid=domid, host=self.host.name, classes=names)
                self._notifier.ready(f"{self.side.value}s of {names}")
                self.ready.set()
                await self._stop.wait()
                self._notifier.stopping("leaving devices in order")
                await runtime.stop()
                for task in tasks:
                    task.cancel()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            await runtime.stop()
            self.log.info("daemon.stopped")


def check_arbiter(side: Side, config: Config) -> None:
    """Refuse arbiter mode where there are no backends of Linux's to share with.

    Raises:
        UsageError
    """
    if config.daemon.arbiter and side is Side.FRONTEND:
        raise UsageError("arbiter mode is for backends: leave arbiter = true out of the agent's configuration file")
    if config.daemon.arbiter and config.daemon.host != "xen":
        raise UsageError("arbiter mode shares with Linux's own backends, and a simulated host has none: leave it out")


async def release(config: Config, kernel_bus: KernelBus | None = None) -> str:
    """Undo the changes of a daemon in arbiter mode that it could not undo itself. Does nothing if there are none.

    Args:
        config: the daemon's configuration.
        kernel_bus: the kernel's bus; by default that of this machine.

    Returns:
        A sentence that says what was done.

    Raises:
        UsageError: a daemon still runs, or the kernel's switch cannot be written.
        DriverError, StoreLost: the kernel binds new devices again, but existing ones could not be handed over.
    """
    bus = kernel_bus or KernelBus()
    if config.daemon.host != "xen" or not bus.is_there:
        return "nothing to release: there are no backends of Linux's here"
    if bus.autoprobe and not config.daemon.arbiter:
        return "nothing to release: Linux binds new devices by itself"
    control = config.control_socket(DOM0)
    if answers(control):
        raise UsageError(f"{control} answers: stop that daemon (systemctl stop xenbusd), and it releases by itself")
    await restore(bus)
    from xenbusd.host.real import store_endpoint

    claims = Claims.of(registry.find(Side.BACKEND, config.daemon.classes), shared=True)
    try:
        async with asyncio.timeout(RELEASE_S), StoreClient(store_endpoint()) as store:
            domid = Domid(int(await store.read("domid")))
            handed = await Arbiter(bus, store, domid, claims, log.get()).settle()
    except TimeoutError:
        raise StoreLost(f"the store has not answered for {RELEASE_S:g} s; run this again when it does") from None
    return f"Linux binds new devices by itself again; handed over: {' '.join(handed) or 'nothing was left'}"


def make_run_dir(path: str) -> str:
    """Make the run directory if it is not there, for root alone, and return its path.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the run directory {path}: {error.strerror}; choose another by --run-dir"
        ) from error
    return path
