"""Arbiter mode: Linux's backends and ours serve devices of one class in one domain.

The arbiter keeps the kernel from binding devices by itself. It decides for each device on the kernel's bus whether it
is ours, and has the kernel bind it if it is not. When the arbiter ends, the kernel binds by itself again. A device
beyond Initialising already has a backend and is never handed over: a ring of ours that waits for the next daemon stays
ours.

Decisions: D19, D20.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress

from xenbusd.arbiter.kernel_bus import KernelBus
from xenbusd.arbiter.uevents import following, open_uevents
from xenbusd.bus.paths import BUS_ID_MAX, DeviceId
from xenbusd.bus.state import State, parse_state
from xenbusd.errors import AccessDenied, NodeNotFound, StoreError, StoreLost, UsageError
from xenbusd.ids import Domid
from xenbusd.log import Logger
from xenbusd.registry import Claims
from xenbusd.store.client import StoreClient

RESYNC_S = 3.0
"""Seconds after which the whole bus is checked even without an event: libxl gives a backend 10 s."""

RELEASE_S = 10.0
"""The longest that `release` may spend on handing over devices. By then the kernel binds new devices again."""


class Arbiter:
    """Decides for each device whether the kernel's backend or ours serves it.

    Args:
        bus: the kernel's bus of backend devices.
        store: with the backend directories.
        domid: this domain.
        claims: which devices are ours.
        log: gets one line for each device that is handed over, or that no driver takes.
    """

    def __init__(
        self,
        bus: KernelBus,
        store: StoreClient,
        domid: Domid,
        claims: Claims,
        log: Logger,
    ) -> None:
        self.bus = bus
        self._store = store
        self._home = f"/local/domain/{domid}/"
        self._claims = claims
        self._log = log
        self._wake = asyncio.Event()
        self._left: dict[str, frozenset[str]] = {}
        """Devices that no driver took, by bus id, with the drivers that were loaded then."""
        self._driverless: set[str] = set()
        """Classes for which Linux has no driver and `class.unserved` is in the log already."""
        self._reported: set[str] = set()
        """Bus ids of devices whose `device.unserved` or `device.taken` is in the log already."""

    @asynccontextmanager
    async def arbitrating(self) -> AsyncIterator[None]:
        """In the block, keep the kernel from binding devices by itself, and receive its events; then `release`.

        Raises:
            UsageError: this kernel has no such bus, or this process may not control it.
        """
        try:
            self.bus.switch_autoprobe(False)
        except OSError as error:
            raise UsageError(
                f"arbiter mode needs a Xen host's kernel and root: cannot write {error.filename}: {error.strerror}; "
                "run it there, or leave --arbiter (arbiter = true in the configuration file) out"
            ) from error
        self._log.info("arbiter.began", drivers=" ".join(sorted(self.bus.drivers())))
        with ExitStack() as stack:
            try:
                stack.enter_context(following(open_uevents(), self.wake))
            except OSError as error:  # without events, a device waits for the next check of the whole bus
                self._log.warning("uevents.refused", error=str(error))
            try:
                yield
            finally:
                await self.release()

    async def run(self) -> None:
        """Hand over every device that is not ours, now and as they appear; never returns."""
        while True:
            self._wake.clear()
            await self._observe()
            with suppress(TimeoutError):
                async with asyncio.timeout(RESYNC_S):
                    await self._wake.wait()

    def wake(self) -> None:
        """Have the bus checked soon, since something may have changed there."""
        self._wake.set()

    async def is_ours(self, id: DeviceId) -> bool:
        """Return whether a device of a class that we serve is ours. One that the kernel has bound is not."""
        bus_id = id.log_name
        reported = bus_id in self._reported
        if not self._claims.is_ours(id.device_class, await self._read(id.backend_path + "/script")):
            if len(bus_id) > BUS_ID_MAX and not reported:
                self._reported.add(bus_id)
                complaint = f"it is left to Linux, which accepts no name longer than {BUS_ID_MAX} characters"
                self._log.warning("device.unserved", device=bus_id, error=complaint)
            return False
        driver = self.bus.driver(bus_id)
        if driver is not None and not reported:
            self._reported.add(bus_id)
            self._log.warning("device.taken", device=bus_id, driver=driver, todo="detach it and attach it again")
        return driver is None

    async def release(self) -> None:
        """Have the kernel bind devices by itself again, and hand over those that wait for it. Idempotent.

        Raises:
            UsageError: the kernel's switch cannot be written.
        """
        await restore(self.bus)
        handed: list[str] = []
        try:
            async with asyncio.timeout(RELEASE_S):
                handed = await self.settle()
        except (TimeoutError, StoreLost):
            self._log.error("arbiter.late", error="the store does not answer; devices may be left without a driver")
        self._log.info("arbiter.released", handed_over=" ".join(handed))

    async def settle(self) -> list[str]:
        """Check every unbound device, and hand over those that are not ours.

        Returns:
            The bus ids of the devices that were handed over.
        """
        unbound = self.bus.unbound()
        for gone in self._left.keys() - set(unbound):
            del self._left[gone]
        there = set(self.bus.devices())
        self._reported = {bus_id for bus_id in self._reported if bus_id in there or len(bus_id) > BUS_ID_MAX}
        handed = []
        for bus_id in unbound:
            try:
                if await self._is_for_the_kernel(bus_id) and await self._hand_over(bus_id):
                    handed.append(bus_id)
            except (StoreError, OSError) as error:
                self._log.error("device.unserved", device=bus_id, error=str(error))
        return handed

    async def _observe(self) -> None:
        """Settle, after switching autoprobe off again if somebody has switched it on."""
        try:
            if self.bus.autoprobe:
                self._log.warning("autoprobe.changed", todo="do not run xenbusd release while xenbusd serves")
                self.bus.switch_autoprobe(False)
        except OSError as error:
            self._log.error("autoprobe.refused", error=str(error))
        await self.settle()

    async def _is_for_the_kernel(self, bus_id: str) -> bool:
        """Whether the device is at Initialising, so that it has no backend yet, and is not ours."""
        nodename = self.bus.nodename(bus_id)
        if nodename is None:
            return False
        path = self._home + nodename
        if parse_state(await self._read(path + "/state")) is not State.INITIALISING:
            return False
        return not self._claims.is_ours(class_of(bus_id), await self._read(path + "/script"))

    async def _hand_over(self, bus_id: str) -> bool:
        """Have the kernel bind a device, after loading the driver if necessary. Return whether it is bound.

        A device that no driver takes is tried again once other drivers are loaded.
        """
        if self._left.get(bus_id) == self.bus.drivers():
            return False
        complaint: str | None = None
        bound = await asyncio.to_thread(self.bus.probe, bus_id)
        if not bound:
            complaint = await self.bus.load(class_of(bus_id))
            bound = complaint is None and await asyncio.to_thread(self.bus.probe, bus_id)
        if bound:
            self._log.info("device.handed_over", device=bus_id, driver=self.bus.driver(bus_id))
            return True
        self._left[bus_id] = self.bus.drivers()
        self._report_left(bus_id, complaint)
        return False

    def _report_left(self, bus_id: str, complaint: str | None) -> None:
        """Log that none of the kernel's drivers took a device. A class for which neither Linux nor we have a driver is
        logged only once: every guest's console is such a device."""
        device_class = class_of(bus_id)
        if complaint is None:
            self._log.warning("device.unserved", device=bus_id, error="Linux's driver refused it")
        elif self._claims.serves(device_class):
            todo = "arbiter mode needs this driver: do not block it in /etc/modprobe.d"
            self._log.warning("device.unserved", device=bus_id, error=complaint, todo=todo)
        elif device_class not in self._driverless:
            self._driverless.add(device_class)
            self._log.info("class.unserved", device_class=device_class, reason=complaint)

    async def _read(self, path: str) -> bytes | None:
        try:
            return await self._store.read(path)
        except (NodeNotFound, AccessDenied):
            return None


async def restore(bus: KernelBus) -> None:
    """Have the kernel bind new devices by itself again. Idempotent.

    The drivers of all unbound devices are loaded before that: a driver that is loaded while the kernel binds by itself
    is at once bound to every unbound device of its class, including our connected ones.

    Raises:
        UsageError: the kernel's switch cannot be written.
    """
    try:
        bus.switch_autoprobe(False)
        for device_class in sorted({class_of(bus_id) for bus_id in bus.unbound()}):
            await bus.load(device_class)
        bus.switch_autoprobe(True)
    except OSError as error:
        raise UsageError(
            f"Linux's own backends stay off: cannot write 1 to {error.filename}: {error.strerror}; do it as root"
        ) from error


def class_of(bus_id: str) -> str:
    """Return the device class in a bus id: "vbd" for "vbd-5-51712"."""
    return bus_id.rsplit("-", 2)[0]
