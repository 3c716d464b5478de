"""The composition root, for both roles: backends in dom0 or a driver domain, frontends in a guest."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack

from xenbusd import log, registry
from xenbusd.arbiter.arbiter import RELEASE_S, Arbiter, restore
from xenbusd.arbiter.kernel_bus import KernelBus
from xenbusd.bus.device import Device, Services
from xenbusd.bus.domains import follow_domains
from xenbusd.bus.ports import Ports
from xenbusd.bus.scan import Scan
from xenbusd.bus.state import Side
from xenbusd.config import Config
from xenbusd.control.server import ControlServer
from xenbusd.errors import StoreLost, UsageError
from xenbusd.host.interface import Host
from xenbusd.hotplug import ScriptRunner
from xenbusd.ids import DOM0, Domid
from xenbusd.process import notify
from xenbusd.process.descriptors import allow_many
from xenbusd.store.client import StoreClient

GUEST_WINDOW = 16
"""Requests in flight in a guest, whose quota is 20 (quota-outstanding-requests)."""


class Daemon:
    """Everything that one `xenbusd serve` or `xenbusd agent` process is made of.

    Args:
        side: backends or frontends.
        host: the door to the machine; closed by its owner.
        config: from file and command line.
        kernel_bus: where Linux's own backends are, for arbiter mode.
    """

    def __init__(self, side: Side, host: Host, config: Config, kernel_bus: KernelBus | None = None) -> None:
        self.side: Side = side
        self.host = host
        self.config = config
        self.log = log.get()
        self.scans: list[Scan] = []
        self._kernel_bus = kernel_bus or KernelBus()
        self.ready = asyncio.Event()
        """Set once every device class is watched."""
        self._stop = asyncio.Event()
        self._notifier = notify.Notifier()

    @property
    def devices(self) -> list[Device]:
        """All devices that are being lived through."""
        return [dev for scan in self.scans for dev in scan.devices]

    def stop(self) -> None:
        """End `run` in order."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT.

        Raises:
            StoreLost: no store answers at the start.
            DriverError: a driver is missing or bad.
            UsageError: another daemon has this run directory; arbiter mode where it cannot be.
        """
        check_arbiter(self.side, self.config)
        drivers = registry.find(self.side, self.config.daemon.classes)
        for name, driver in drivers.items():
            driver.check_options(self.config.driver(name))
        allow_many()
        async with AsyncExitStack() as stack:
            store = StoreClient(self.host.store, window=GUEST_WINDOW if self.side is Side.FRONTEND else 0)
            store.on_lost = lambda reason: self.log.error("store.lost", reason=reason)
            store.on_back = lambda: self.log.info("store.back")
            await stack.enter_async_context(store)
            domid = Domid(int(await store.read("domid")))
            services = self._services(store, domid)
            control = ControlServer(self, services, domid)
            await control.listen(make_run_dir(services.run_dir) + "/control.sock")
            stack.push_async_callback(control.close)
            services.ports.start()
            stack.callback(services.ports.stop)
            arbiter = None
            if self.config.daemon.arbiter:
                arbiter = Arbiter(self._kernel_bus, store, domid, registry.claims(drivers), self.log)
                await stack.enter_async_context(arbiter.arbitrating())
            is_ours = arbiter.is_ours if arbiter is not None else None
            self.scans = [Scan(services, driver, name, self.side, is_ours) for name, driver in drivers.items()]
            await self._serve(store, domid, arbiter)

    def _services(self, store: StoreClient, domid: Domid) -> Services:
        config = self.config
        runner = ScriptRunner(
            timeout_s=config.hotplug.timeout_s,
            store_socket=self.host.store.socket_path,
            log=self.log,
            scripts_dir=config.hotplug.scripts_dir,
        )
        return Services(
            store=store,
            host=self.host,
            ports=Ports(self.host.events),
            domid=domid,
            log=self.log,
            hotplug=runner if self.side is Side.BACKEND else None,
            options=config.drivers,
            run_dir=config.run_dir(domid),
        )

    async def _serve(self, store: StoreClient, domid: Domid, arbiter: Arbiter | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(scan.run()) for scan in self.scans]
                if arbiter is not None:
                    tasks.append(group.create_task(arbiter.run()))
                tasks.append(group.create_task(follow_domains(store, self.scans)))
                tasks.append(group.create_task(self._notifier.keep_alive()))
                names = " ".join(scan.device_class for scan in self.scans)
                self.log.info("daemon.started", side=self.side.value, domid=domid, host=self.host.name, classes=names)
                self._notifier.ready(f"{self.side.value}s of {names}")
                self.ready.set()
                await self._stop.wait()
                self._notifier.stopping("leaving devices in order")
                await asyncio.gather(*(scan.supervisor.stop() for scan in self.scans))
                for task in tasks:
                    task.cancel()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            self.log.info("daemon.stopped")


def check_arbiter(side: Side, config: Config) -> None:
    """See that arbiter mode, if it is wanted, is wanted where there is something to share.

    Raises:
        UsageError
    """
    if config.daemon.arbiter and side is Side.FRONTEND:
        raise UsageError("arbiter mode is for backends: leave arbiter = true out of the agent's configuration file")
    if config.daemon.arbiter and config.daemon.host != "xen":
        raise UsageError("arbiter mode shares with Linux's own backends, and a simulated host has none: leave it out")


async def release(config: Config, kernel_bus: KernelBus | None = None) -> str:
    """Undo what a daemon in arbiter mode did that could not do it itself. Does nothing where nothing is to be undone.

    Args:
        config: as the daemon had it.
        kernel_bus: the kernel's.

    Returns:
        What was done, as a sentence.

    Raises:
        UsageError: a daemon is still there, or the kernel cannot be told.
        DriverError, StoreLost: the kernel binds new devices again, but what stands there already could not be seen to.
    """
    bus = kernel_bus or KernelBus()
    if config.daemon.host != "xen" or not bus.is_there:
        return "nothing to release: there are no backends of Linux's here"
    if bus.autoprobe and not config.daemon.arbiter:
        return "nothing to release: Linux binds new devices by itself"
    control = f"{config.run_dir(DOM0)}/control.sock"
    if answers(control):
        raise UsageError(f"{control} answers: stop that daemon (systemctl stop xenbusd), and it releases by itself")
    await restore(bus)
    from xenbusd.host.real import store_endpoint

    claims = registry.claims(registry.find(Side.BACKEND, config.daemon.classes))
    try:
        async with asyncio.timeout(RELEASE_S), StoreClient(store_endpoint()) as store:
            domid = Domid(int(await store.read("domid")))
            handed = await Arbiter(bus, store, domid, claims, log.get()).settle()
    except TimeoutError:
        raise StoreLost(f"the store has not answered for {RELEASE_S:g} s; run this again when it does") from None
    return f"Linux binds new devices by itself again; handed over: {' '.join(handed) or 'nothing was left'}"


def answers(path: str) -> bool:
    """Whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def make_run_dir(path: str) -> str:
    """Make the run directory if need be, for root alone, and return it.

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
