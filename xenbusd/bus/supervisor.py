"""One task for each device: runs its driver, turns errors into error nodes and closed devices, and never lets one
device's end harm another's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.device import Connection, Device
from xenbusd.bus.driver import Driver
from xenbusd.bus.frontend import FrontendDevice
from xenbusd.bus.frontend_life import FrontendLife
from xenbusd.bus.state import State
from xenbusd.errors import (
    ConnectionEnded,
    HypercallError,
    LocalProtocolError,
    OtherendError,
    StoreError,
    StoreLost,
    XenbusdError,
)

AnyDevice = BackendLife | FrontendLife

STOP_S = 10.0
"""How long all devices together may take to leave in order when the daemon stops."""


class Supervisor:
    """The devices of this process and their tasks.

    Args:
        ended: called when a device's task has ended, with the device, and whether an error outside any connection ended
            it.
    """

    def __init__(self, ended: Callable[[Device, bool], None]) -> None:
        self._ended = ended
        self._tasks: dict[Device, asyncio.Task[bool]] = {}
        self.stopping = False
        """True once the daemon stops: no device may start, for one that has left in order would be started again."""

    @property
    def devices(self) -> list[Device]:
        """All devices with a task, in order of appearance."""
        return list(self._tasks)

    def start(self, dev: AnyDevice, driver: Driver[Any]) -> None:
        """Give a device its task."""
        dev.condition = driver.condition
        task = asyncio.create_task(self._live(dev, driver), name=dev.id.log_name)
        self._tasks[dev] = task
        task.add_done_callback(lambda _: self._forget(dev))

    def _forget(self, dev: Device) -> None:
        task = self._tasks.pop(dev)
        crashed = False
        if not task.cancelled():
            if (error := task.exception()) is not None:
                dev.log.error("device.lost", error=repr(error))  # _live catches all; this is for a bug in it
            else:
                crashed = task.result()
        self._ended(dev, crashed)

    async def stop(self) -> None:
        """Have every device leave in order: frontends close, backends drain and leave their state as it is (T15)."""
        self.stopping = True
        tasks = list(self._tasks.values())
        for dev in list(self._tasks):
            dev.stopping = True
            dev.wake()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _live(self, dev: AnyDevice, driver: Driver[Any]) -> bool:
        """Lead a device through its whole life: connection after connection, until it is removed. Return whether an
        error outside any connection ended it."""
        handle = BackendDevice(dev) if isinstance(dev, BackendLife) else FrontendDevice(dev)
        try:
            async with dev.watching():
                begin, failed = await dev.appear(), False
                while begin or await dev.wait_again(failed):
                    if not begin:
                        dev.connection = Connection()
                    begin = False
                    failed = await self._connection(dev, driver, handle)
                    if dev.stopping and isinstance(dev, BackendLife):
                        return False  # the next daemon adopts the ring
                    await dev.close()
        except ConnectionEnded:
            return False
        except StoreLost:
            if not dev.stopping:
                raise
        except Exception as error:
            self._log_error(dev, error)
            await dev.report(error)  # an error node; the directory stays (T20)
            return True
        finally:
            await driver.close()
            dev.remove_run_paths()
        return False

    async def _connection(self, dev: AnyDevice, driver: Driver[Any], handle: BackendDevice | FrontendDevice) -> bool:
        """Run the driver once. Return whether it ended by an error."""
        began = time.monotonic()
        reason, failed = "", False
        try:
            await driver.run(handle)
        except Exception as raised:
            error = innermost(raised)
            if isinstance(error, ConnectionEnded):
                reason = str(error)
            elif isinstance(error, StoreLost) and dev.stopping:
                raise error from None
            elif gone := await self._gone(dev, error):
                reason = gone
            else:
                failed, reason = True, str(error)
                self._log_error(dev, error)
                await dev.report(error)
        ended = dev.end_reason(dev.seen) if not reason else None
        dev.log.info(
            "device.closed",
            reason=reason or ended or ("the daemon stops" if dev.stopping else "the driver ended it"),
            lifetime_s=round(time.monotonic() - began, 3),
            by_otherend=True,
            **dev.counters,
        )
        return failed

    @staticmethod
    async def _gone(dev: Device, error: Exception) -> str | None:
        """Return how the device has gone, if an error is only a consequence of that: then nobody is to blame (T9)."""
        if not isinstance(error, OtherendError | StoreError | HypercallError):
            return None
        seen = await dev.observe()
        return dev.end_reason(seen) if State.UNKNOWN in (seen.own, seen.otherend) else None

    @staticmethod
    def _log_error(dev: Device, error: Exception) -> None:
        """Log an error according to who is to blame: the other end, the host, or xenbusd."""
        if isinstance(error, OtherendError):
            dev.log.warning("otherend.fault", error=str(error))
        elif isinstance(error, LocalProtocolError) or not isinstance(error, XenbusdError | OSError):
            dev.log.error("driver.crashed", error=repr(error), exc_info=error)
        else:
            dev.log.error("device.failed", error=str(error), by_otherend=True)


def innermost(error: Exception) -> Exception:
    """The error that matters: out of an ExceptionGroup, its first leaf that is not just the unwinding."""
    while isinstance(error, ExceptionGroup):
        leaves = error.exceptions
        error = next((leaf for leaf in leaves if not isinstance(leaf, ConnectionEnded)), leaves[0])
    return error
