"""Watches one device class and starts a task for each device that appears. One watch for a whole class (T13).

Decisions: D7, D70.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.device import Device
from xenbusd.bus.driver import Driver
from xenbusd.bus.frontend_life import FrontendLife
from xenbusd.bus.handover import sweep
from xenbusd.bus.paths import DeviceId, backend_root, bus_id, frontend_root, parse_number
from xenbusd.bus.services import Services
from xenbusd.bus.state import Side, State, parse_state
from xenbusd.bus.supervisor import Supervisor
from xenbusd.errors import AccessDenied, NodeNotFound, StoreError
from xenbusd.ids import DOMID_FIRST_RESERVED, DeviceClass, Devid, Domid

RESYNC_S = 30.0
"""Seconds after which every device is observed even without a hint: a watch event may have been lost (T2, XSA-326)."""


class Scan:
    """The devices of one class on one side.

    Args:
        services: the services that all devices share.
        driver: makes a driver for each device.
        is_ours: says of each device, before it is started, whether it is ours; None: all are.
        owns_run_dir: journals in the run directory that belong to no device of the class may be removed.
    """

    def __init__(
        self,
        services: Services,
        driver: type[Driver[Any]],
        device_class: DeviceClass,
        side: Side,
        is_ours: Callable[[DeviceId], Awaitable[bool]] | None = None,
        *,
        owns_run_dir: bool,
    ) -> None:
        self.services = services
        self.device_class = device_class
        self.side = side
        self.root = (backend_root if side is Side.BACKEND else frontend_root)(services.domid, device_class)
        self.supervisor = Supervisor(self._ended)
        self._driver = driver
        self._is_ours = is_ours
        self._owns_run_dir = owns_run_dir
        self._depth = 2 if side is Side.BACKEND else 1
        self._known: dict[str, Device] = {}
        self._again: set[str] = set()
        self._wake = asyncio.Event()

    @property
    def devices(self) -> list[Device]:
        """The devices that have a task now."""
        return self.supervisor.devices

    async def run(self) -> None:
        """Follow the class until cancelled. The watch fires at its registration: that begins the first scan (T1)."""
        watch = await self.services.store.watch(self.root, depth=self._depth, wake=self._wake.set)
        try:
            while True:
                try:
                    async with asyncio.timeout(RESYNC_S):
                        await self._wake.wait()
                except TimeoutError:
                    self._again.add(self.root)
                self._wake.clear()
                hints = watch.take() | self._again
                self._again.clear()
                for hint in sorted(hints):
                    try:
                        await self._heed(hint)
                    except StoreError as error:  # such as a listing too long for the store; the next resync tries again
                        self.services.log.error("scan.failed", path=hint, error=str(error))
        finally:
            await watch.unwatch()

    def domain_gone(self, domid: Domid) -> None:
        """A domain has been destroyed: its devices' other ends are dead, whatever the store still says (T57)."""
        for dev in self._known.values():
            if dev.otherend.domid == domid:
                dev.otherend_is_dead = True
                dev.wake()

    def wake_domain(self, domid: Domid) -> None:
        """Something has happened to a domain: observe its devices."""
        for dev in self._known.values():
            if dev.otherend.domid == domid:
                dev.wake()

    def other_domains(self) -> set[Domid]:
        """The domains at the other ends."""
        return {dev.otherend.domid for dev in self._known.values()}

    async def _heed(self, hint: str) -> None:
        """Wake one device; if the hint is not that precise, wake all devices and list the class anew.

        A hint says where to read; what stands there, a read says (T5).
        """
        dev = self._known.get(hint)
        if dev is not None:
            dev.wake()
        elif hint.count("/") - self.root.count("/") == self._depth:
            await self._probe(hint)
        else:
            for dev in self._known.values():
                dev.wake()
            await self._list()

    async def _list(self) -> None:
        """Find every device directory of the class."""
        paths = [self.root]
        for _ in range(self._depth):
            paths = [f"{path}/{name}" for path in paths for name in await self._names(path)]
        self._sweep(paths)
        for path in paths:
            if path not in self._known:
                await self._probe(path)

    def _sweep(self, paths: list[str]) -> None:
        """Remove the journals of devices that vanished while no daemon served them."""
        if self.side is Side.BACKEND and self._owns_run_dir:
            present = [bus_id(self.device_class, *path.split("/")[-2:]) for path in [*paths, *self._known]]
            sweep(self.services.run_dir, self.device_class, present)

    async def _names(self, path: str) -> list[str]:
        try:
            return await self.services.store.directory(path)
        except (NodeNotFound, AccessDenied):
            return []

    async def _probe(self, path: str) -> None:
        """Start a device if its directory is complete; otherwise it is probed again at the next hint (T16)."""
        otherend_key = self.side.opposite.value
        store = self.services.store
        answers = await asyncio.gather(
            store.read(f"{path}/{otherend_key}"),
            store.read(f"{path}/{otherend_key}-id"),
            store.read(f"{path}/state"),
            return_exceptions=True,
        )
        if any(isinstance(answer, NodeNotFound | AccessDenied) for answer in answers):
            return
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        otherend_path, otherend_id, state = (str(bytes(answer), "ascii", "replace") for answer in answers)  # type: ignore[arg-type]
        if self.supervisor.stopping or parse_state(state.encode()) is State.UNKNOWN:  # as good as not there (T9)
            return
        id = self._identify(path, otherend_id)
        if id is None or not otherend_path.startswith(f"/local/domain/{otherend_id}/"):  # T11
            self.services.log.warning("otherend.misplaced", path=path, otherend=otherend_path, otherend_id=otherend_id)
            return
        if self._is_ours is None or await self._is_ours(id):
            self._start(path, id, otherend_path)

    def _identify(self, path: str, otherend_id: str) -> DeviceId | None:
        """Read the device's identity from our own directory's path, with which the other end's domid must agree."""
        parts = path.removeprefix(self.root + "/").split("/")
        numbers = [parse_number(part) for part in parts]
        otherend_domid = parse_number(otherend_id, DOMID_FIRST_RESERVED - 1)
        devid = numbers[-1]
        if otherend_domid is None or devid is None:
            return None
        if self.side is Side.FRONTEND:
            return DeviceId(self.device_class, self.services.domid, Devid(devid), Domid(otherend_domid))
        if numbers[0] != otherend_domid:
            return None
        return DeviceId(self.device_class, Domid(otherend_domid), Devid(devid), self.services.domid)

    def _start(self, path: str, id: DeviceId, otherend_path: str) -> None:
        kind = BackendLife if self.side is Side.BACKEND else FrontendLife
        dev = kind(self.services, id, otherend_path, self._driver.counters)
        dev.log.debug("device.appeared", side=self.side.value)
        self._known[path] = dev
        self.supervisor.start(dev, self._driver())

    def _ended(self, dev: Device, crashed: bool) -> None:
        """A device's task has ended: forget it, and see whether a new directory stands there already."""
        del self._known[dev.path]
        if not dev.stopping and not crashed:  # a device that crashed waits for the next hint or resync
            self._again.add(dev.path)
            self._wake.set()
