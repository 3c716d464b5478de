"""Arbiter mode: Linux's backends and ours in one domain, each with the devices that are its own.

The kernel is told to bind nothing by itself; of each device that appears on its bus we decide whose it is, and hand it
over unless it is ours. When we end, the kernel binds by itself again. A device beyond Initialising is somebody's
already and is never handed over: a ring of ours that waits for the next daemon stays ours.
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
"""How often everything is looked at without a hint: less than the 10 s that libxl gives a backend."""

RELEASE_S = 10.0
"""How long handing over what is left may take when we end. That the kernel binds new devices again is done first."""


class Arbiter:
    """Decides between the kernel's backends and ours.

    Args:
        bus: the kernel's.
        store: where devices say what they are.
        domid: our own domain.
        claims: which devices are ours.
        log: gets one line for each device that is handed over or left.
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
        """Devices that no driver took, with the drivers that there were."""
        self._driverless: set[str] = set()
        """Classes that Linux was found to have no driver for."""
        self._told: set[str] = set()
        """Devices of which the log knows that nobody serves them as they should be."""

    @asynccontextmanager
    async def arbitrating(self) -> AsyncIterator[None]:
        """Keep the kernel from binding by itself, for a while, and hear of what appears on its bus.

        Raises:
            UsageError: there is no such kernel here, or we may not.
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
            except OSError as error:  # then each device waits for the next look
                self._log.warning("uevents.refused", error=str(error))
            try:
                yield
            finally:
                await self.release()

    async def run(self) -> None:
        """Hand over what is not ours, now and as it appears, for ever."""
        while True:
            self._wake.clear()
            await self._observe()
            with suppress(TimeoutError):
                async with asyncio.timeout(RESYNC_S):
                    await self._wake.wait()

    def wake(self) -> None:
        """Something may have changed on the bus."""
        self._wake.set()

    async def is_ours(self, id: DeviceId) -> bool:
        """Say whether a device of a class that we serve is ours. One that the kernel has bound is not."""
        bus_id = id.log_name
        told = bus_id in self._told
        if not self._claims.is_ours(id.device_class, await self._read(id.backend_path + "/script")):
            if len(bus_id) > BUS_ID_MAX and not told:
                self._told.add(bus_id)
                complaint = f"it is Linux's, which takes no name of over {BUS_ID_MAX} characters"
                self._log.warning("device.unserved", device=bus_id, error=complaint)
            return False
        driver = self.bus.driver(bus_id)
        if driver is not None and not told:
            self._told.add(bus_id)
            self._log.warning("device.taken", device=bus_id, driver=driver, todo="detach it and attach it again")
        return driver is None

    async def release(self) -> None:
        """Have the kernel bind by itself again, and hand over what stands there for it. Idempotent.

        Raises:
            UsageError: the kernel cannot be told.
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
        """Look at every device that is not bound, and hand over what is not ours.

        Returns:
            The bus ids of what the kernel has now.
        """
        unbound = self.bus.unbound()
        for gone in self._left.keys() - set(unbound):
            del self._left[gone]
        there = set(self.bus.devices())
        self._told = {bus_id for bus_id in self._told if bus_id in there or len(bus_id) > BUS_ID_MAX}
        handed = []
        for bus_id in unbound:
            try:
                if await self._is_for_the_kernel(bus_id) and await self._hand_over(bus_id):
                    handed.append(bus_id)
            except (StoreError, OSError) as error:
                self._log.error("device.unserved", device=bus_id, error=str(error))
        return handed

    async def _observe(self) -> None:
        """Settle; and see that nobody has undone what `arbitrating` did."""
        try:
            if self.bus.autoprobe:
                self._log.warning("autoprobe.changed", todo="do not run xenbusd release while xenbusd serves")
                self.bus.switch_autoprobe(False)
        except OSError as error:
            self._log.error("autoprobe.refused", error=str(error))
        await self.settle()

    async def _is_for_the_kernel(self, bus_id: str) -> bool:
        """Whether nobody has the device yet, and it is not ours."""
        nodename = self.bus.nodename(bus_id)
        if nodename is None:
            return False
        path = self._home + nodename
        if parse_state(await self._read(path + "/state")) is not State.INITIALISING:
            return False
        return not self._claims.is_ours(class_of(bus_id), await self._read(path + "/script"))

    async def _hand_over(self, bus_id: str) -> bool:
        """Have the kernel bind a device; its driver is loaded if need be. One that no driver takes is tried again when
        another driver has been loaded."""
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
        self._tell_left(bus_id, complaint)
        return False

    def _tell_left(self, bus_id: str, complaint: str | None) -> None:
        """Say that no driver of the kernel's took a device. Of a class that neither Linux nor we have one for, that is
        no news: every guest's console is such a device."""
        device_class = class_of(bus_id)
        if complaint is None:
            self._log.warning("device.unserved", device=bus_id, error="Linux's driver refused it")
        elif self._claims.serves(device_class):
            todo = "in arbiter mode nothing in /etc/modprobe.d may keep it away"
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

    The drivers of all unbound devices are loaded while it does not: one that is loaded while the kernel binds by itself
    is at once bound to every unbound device of its class, our connected ones among them.

    Raises:
        UsageError: the kernel cannot be told.
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
    """The device class in a bus id: "vbd" of "vbd-5-51712"."""
    return bus_id.rsplit("-", 2)[0]
