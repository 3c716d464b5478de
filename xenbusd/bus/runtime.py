"""The composition root: everything between a store session and the drivers, wired together in one place.

A `Runtime` is used by the daemon, by each process of `xenbusd.testing`, and by any other program that runs drivers. It
is handed a store session, a host interface and its settings; it makes the services that the devices share (`Services`),
one `Scan` for each driver, and the task that follows the lives of other domains.

It never assumes that it serves all devices of the machine: other processes may serve other devices of the same class
(`is_ours`), and may have files in the same run directory (`owns_run_dir`). Signals, readiness, the control socket and
arbiter mode belong to the daemon.

Decisions: D45, D70.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from xenbusd.bus.device import Device
from xenbusd.bus.domains import follow_domains
from xenbusd.bus.driver import Driver
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.ports import Ports
from xenbusd.bus.scan import Scan
from xenbusd.bus.services import HotplugRunner, Services
from xenbusd.host.interface import Host
from xenbusd.ids import DOM0, Domid
from xenbusd.log import Logger
from xenbusd.store.client import StoreClient

GUEST_WINDOW = 16
"""Requests that a store session in a guest keeps in flight; the guest's quota is 20 (quota-outstanding-requests)."""


def store_window(domid: Domid) -> int:
    """How many requests a store session of a domain keeps in flight; 0: any number, for domain 0 has no quota."""
    return 0 if domid == DOM0 else GUEST_WINDOW


class Runtime:
    """The devices of one process, and the services that they share.

    Args:
        store: an open or yet to be opened session of our domain; its owner closes it, after `stop`.
        host: the interface to the machine; its owner closes it, after `stop`.
        drivers: one for each device class and side to serve.
        domid: our own domain.
        log: the log that the devices' lines go to.
        run_dir: the directory for drivers' sockets and rings' journals; it exists.
        owns_run_dir: no other process keeps journals of these device classes there, so those of devices that are gone
            may be removed.
        state_dir: the directory for drivers' state that outlives the daemon; None: each driver's own.
        options: each class's table of the configuration file.
        hotplug: runs hotplug scripts; None where another program runs them.
        is_ours: says of each device, before it is started, whether it is ours; None: all devices in the store are.
    """

    def __init__(
        self,
        store: StoreClient,
        host: Host,
        drivers: Iterable[type[Driver[Any]]],
        *,
        domid: Domid,
        log: Logger,
        run_dir: str,
        owns_run_dir: bool,
        state_dir: str | None,
        options: Mapping[str, Mapping[str, Any]],
        hotplug: HotplugRunner | None = None,
        is_ours: Callable[[DeviceId], Awaitable[bool]] | None = None,
    ) -> None:
        self.services = Services(
            store=store,
            host=host,
            ports=Ports(host.events),
            domid=domid,
            log=log,
            hotplug=hotplug,
            options=options,
            run_dir=run_dir,
            state_dir=state_dir,
        )
        self.scans = [
            Scan(self.services, driver, driver.device_class, driver.side, is_ours, owns_run_dir=owns_run_dir)
            for driver in drivers
        ]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def devices(self) -> list[Device]:
        """The devices that have a task now, class by class, in order of appearance."""
        return [dev for scan in self.scans for dev in scan.devices]

    def start(self) -> None:
        """Listen to event channels and begin to follow the device classes. The store session must be open."""
        self.services.ports.start()
        self._tasks = [asyncio.create_task(scan.run()) for scan in self.scans]
        if self.scans:
            self._tasks.append(asyncio.create_task(follow_domains(self.services.store, self.scans)))

    async def failed(self) -> None:
        """Wait, normally until cancelled, for one of the tasks that follow the store to end by an error.

        Raises:
            Exception: that error; a bug, or the store session was closed.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in self._tasks:
                if task.done():
                    task.result()

    async def stop(self) -> None:
        """Have every device leave in order, then stop following the store and the event channels. Idempotent.

        Raises:
            Exception: an error that ended one of our tasks while the store session was still open.
        """
        await asyncio.gather(*(scan.supervisor.stop() for scan in self.scans))
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        self.services.ports.stop()
        crashes = [end for end in ends if isinstance(end, Exception)]
        if crashes and not self.services.store.closed:
            raise crashes[0]

    def cut(self) -> None:
        """Stop listening at once, as a process that is killed does; `stop` then finds nothing to do in order."""
        for dev in self.devices:
            dev.stopping = True  # errors of tasks that still unwind are not worth a log line
        self.services.ports.stop()
