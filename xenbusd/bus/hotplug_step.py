"""The hotplug step of a backend's device: who runs its script, whether `add` has run, and whether `remove` is owed.

A script is run by exactly one party (T25): libxl runs those of the devices that it manages; `add` is run at most once
in a device's life, also over reconnects and restarts of the daemon, and then `remove` is owed.

Decision: D6.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from xenbusd.bus.otherend import read_all
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.services import NO_VARIABLES, Services
from xenbusd.bus.state import Seen
from xenbusd.bus.timeline import Timeline
from xenbusd.errors import HotplugError, NodeNotFound
from xenbusd.log import Logger
from xenbusd.store.transaction import Transaction


class HotplugStep:
    """The hotplug step of one device.

    Args:
        services: the store, and the runner of scripts.
        id: which device.
        timeline, log: the device's.
        report: writes the device's error node.
    """

    def __init__(
        self,
        services: Services,
        id: DeviceId,
        timeline: Timeline,
        log: Logger,
        report: Callable[[Exception], Awaitable[bool]],
    ) -> None:
        self._store = services.store
        self._runner = services.hotplug
        self._id = id
        self._path = id.backend_path
        self._timeline = timeline
        self._log = log
        self._report = report
        self.script: str | None = None
        """The device's script, whether we or libxl run it; None: it has none."""
        self._is_ours = False
        self._variables = NO_VARIABLES
        self.remove_is_owed = False
        """Whether `add` has run, by us or by a previous daemon."""
        self._hold_init_wait = False
        """Whether libxl created the device and polls for InitWait, but runs no script that would hold it: it tells
        nobody when it has seen InitWait (T19)."""

    async def read(self) -> None:
        """Read which script the device has, and whether libxl manages the device and so runs it (T25)."""
        script, managed = await read_all(self._store, self._path + "/script", self._id.libxl_path + "/backend")
        self.script = None if script is None else script.decode("utf-8", "replace")
        self._is_ours = script is not None and managed is None and self._runner is not None
        self._hold_init_wait = script is None and managed is not None

    def resume(self, seen: Seen) -> None:
        """Take over a device that is beyond Initialising: a previous daemon has served it."""
        self.remove_is_owed = self._is_ours and seen.gate_open
        self._hold_init_wait = False

    def take_init_wait(self) -> bool:
        """Whether InitWait is to be held for libxl: true once at most in the device's life."""
        hold, self._hold_init_wait = self._hold_init_wait, False
        return hold

    def is_done(self, seen: Seen) -> bool:
        """Whether the device may connect: the gate is open, or there is none (T21, T22)."""
        return seen.gate_open or (self.script is None and seen.hotplug_status is None)

    async def add(self, variables: Mapping[str, str] = NO_VARIABLES) -> None:
        """Run the `add` script, if it is ours, once in the device's life. A failure is reported and leaves the gate
        closed.

        Args:
            variables: further variables for the script's environment; `remove` gets them again.
        """
        if self.remove_is_owed or not self._is_ours or self.script is None or self._runner is None:
            return
        self.remove_is_owed = True
        self._variables = dict(variables)
        self._timeline.record("hotplug", "start")
        try:
            await self._run(self.script, "add")
        except HotplugError as error:
            self._timeline.record("hotplug", "error")
            self._log.error("hotplug.failed", error=str(error))
            await self._report(error)
            await self._mark_failed(error)
        else:
            self._timeline.record("hotplug", "write physdets")

    async def remove(self) -> None:
        """Run the `remove` script that is owed, then remove `hotplug-status`: our toolstack waits for that (T23)."""
        if not self.remove_is_owed or self.script is None or self._runner is None:
            return
        self.remove_is_owed = False
        try:
            await self._run(self.script, "remove")
        except HotplugError as error:  # a failure on remove is logged and ignored (T25)
            self._log.warning("hotplug.failed", error=str(error))
        self._timeline.record("hotplug", "remove")
        with suppress(NodeNotFound):
            await self._store.rm(self._path + "/hotplug-status")

    async def _run(self, script: str, action: str) -> None:
        assert self._runner is not None
        await self._runner.run(
            script,
            action,
            backend_path=self._path,
            device_class=self._id.device_class,
            variables=self._variables,
        )

    async def _mark_failed(self, error: HotplugError) -> None:
        """Write the nodes that the script should have written itself, if it did not."""
        status, text = await read_all(self._store, self._path + "/hotplug-status", self._path + "/hotplug-error")
        if status is None or text is None:

            async def body(tx: Transaction) -> None:
                await tx.read(self._path + "/state")  # a removed directory stays removed (T7)
                await tx.write(self._path + "/hotplug-error", str(error))
                await tx.write(self._path + "/hotplug-status", "error")

            with suppress(NodeNotFound):
                await self._store.transaction(body)
