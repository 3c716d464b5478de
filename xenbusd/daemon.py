"""The composition root, for both roles: backends in dom0 or a driver domain, frontends in a guest."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

from xenbusd import log, notify, registry
from xenbusd.bus.device import Device, Surroundings
from xenbusd.bus.domains import follow_domains
from xenbusd.bus.ports import Ports
from xenbusd.bus.scan import Scan
from xenbusd.bus.state import Side
from xenbusd.config import Config
from xenbusd.control import ControlServer
from xenbusd.descriptors import allow_many
from xenbusd.errors import UsageError
from xenbusd.host.interface import Host
from xenbusd.hotplug import ScriptRunner
from xenbusd.ids import Domid
from xenbusd.store.client import StoreClient

GUEST_WINDOW = 16
"""Requests in flight in a guest, whose quota is 20 (quota-outstanding-requests)."""


class Daemon:
    """Everything that one `xenbusd serve` or `xenbusd agent` process is made of.

    Args:
        side: backends or frontends.
        host: the door to the machine; closed by its owner.
        config: from file and command line.
    """

    def __init__(self, side: Side, host: Host, config: Config) -> None:
        self.side: Side = side
        self.host = host
        self.config = config
        self.log = log.get()
        self.scans: list[Scan] = []
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
            UsageError: another daemon has this run directory.
        """
        drivers = registry.find(self.side, self.config.daemon.classes)
        allow_many()
        async with AsyncExitStack() as stack:
            store = StoreClient(self.host.store, window=GUEST_WINDOW if self.side is Side.FRONTEND else 0)
            store.on_lost = lambda reason: self.log.error("store.lost", reason=reason)
            store.on_back = lambda: self.log.info("store.back")
            await stack.enter_async_context(store)
            domid = Domid(int(await store.read("domid")))
            around = self._surroundings(store, domid)
            control = ControlServer(self, around, domid)
            await control.listen(make_run_dir(around.run_dir) + "/control.sock")
            stack.push_async_callback(control.close)
            around.ports.start()
            stack.callback(around.ports.stop)
            self.scans = [Scan(around, driver, name, self.side) for name, driver in drivers.items()]
            await self._serve(store, domid)

    def _surroundings(self, store: StoreClient, domid: Domid) -> Surroundings:
        config = self.config
        runner = ScriptRunner(
            timeout_s=config.hotplug.timeout_s,
            store_socket=self.host.store.socket_path,
            log=self.log,
            scripts_dir=config.hotplug.scripts_dir,
        )
        return Surroundings(
            store=store,
            host=self.host,
            ports=Ports(self.host.events),
            domid=domid,
            log=self.log,
            hotplug=runner if self.side is Side.BACKEND else None,
            options=config.drivers,
            run_dir=config.run_dir(domid),
        )

    async def _serve(self, store: StoreClient, domid: Domid) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(scan.run()) for scan in self.scans]
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
