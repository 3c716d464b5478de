"""A driver's handle on a device: the names that drivers of both ends may use. `BackendDevice` and `FrontendDevice` add
the handshake. `docs/writing-a-driver.md` lists every name, and a test compares that list with the public names here.

Decisions: D64, D74.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

from xenbusd.bus.device import Device
from xenbusd.bus.finding import Finding
from xenbusd.bus.nodes import Value, encode, keys
from xenbusd.bus.state import Seen, State, parse_state
from xenbusd.errors import ConnectionEnded, NodeNotFound
from xenbusd.store.transaction import Transaction

T = TypeVar("T")


class Handle:
    """The part that both ends have in common. There is one handle for each device, the same at each `run`.

    Args:
        device: the device itself, for the bus only: `_device` is private to this package.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.id = device.id
        """Class, domains and number."""
        self.own = device.own
        """Our directory, which only the toolstack and we can write: `await dev.own.read(key, kind)`."""
        self.otherend = device.otherend
        """The other end: `domid`, `path`, and `read` for its keys."""
        self.options = device.options
        """The class's table of the configuration file."""
        self.log = device.log
        """The device's log; every line names the device."""
        self.counters = device.counters
        """Sums over all queues, for `show` and the closing log line; a driver counts here, or for one queue in its
        link."""
        self.histograms = device.counters.histograms
        """The driver's own histograms, for values that belong to no queue."""

    @property
    def adopted(self) -> bool:
        """Whether this connection was taken over from the previous daemon, as Connected."""
        return self._device.connection.adopted

    @property
    def stopping(self) -> bool:
        """Whether the daemon is stopping: another one will adopt the connection."""
        return self._device.stopping

    @property
    def seen(self) -> Seen:
        """Both ends as the store showed them when it was observed last."""
        return self._device.seen

    def run_path(self, suffix: str) -> str:
        """A path of this device's own in the run directory, such as /run/xenbusd/vbd-51712.sock; the file
        there is removed when the device is gone."""
        return self._device.run_path(suffix)

    def state_dir(self, default: str) -> str:
        """The directory for state that outlives the daemon: `default` on Xen; on a simulated host a directory of that
        host's, so that several hosts on one machine do not meet."""
        state_dir = self._device.services.state_dir
        return default if state_dir is None else f"{state_dir}/{self.id.device_class}"

    def fail(self, error: Exception) -> None:
        """End the connection because of an error on its data path: `until_ended`, `serve` and others raise it."""
        self._device.fail(error)

    async def observe(self) -> Seen:
        """Read both ends' states and the other nodes of a `Seen`, all at once."""
        return await self._device.observe()

    async def until(
        self,
        step: Callable[[Seen], T | Finding | None],
        waiting_for: Finding | None = None,
        *,
        deadline_s: float | None = None,
    ) -> T:
        """Observe the store now and after each change, until `step` returns something.

        Args:
            step: a predicate on one observation; may raise ConnectionEnded (see `check`). A Finding that it returns is
                no answer but says what has not happened yet, in the place of `waiting_for`.
            waiting_for: what has not happened yet, for an administrator, as in Finding("the TPM", "has not started").
            deadline_s: seconds; None waits for as long as it takes.

        Raises:
            OtherendTimeout: the deadline passed.
        """
        return await self._device.until(step, waiting_for, deadline_s=deadline_s)

    def check(self, seen: Seen) -> None:
        """Raise the exception that ends the connection, if the connection has ended.

        Raises:
            ConnectionEnded: the connection has ended.
            Exception: the error that `fail` was given.
        """
        self._device.check(seen)

    async def until_ended(self) -> str:
        """Wait for as long as the connection lasts, following the other end into Closing when it leads.

        Returns:
            Why it has ended.

        Raises:
            Exception: the error that `fail` was given.
        """
        return await self._device.until_ended()

    async def changes(self) -> AsyncIterator[None]:
        """Yield at once, and again after each hint that something about this device may have changed: a key of our
        own directory, or the other end's `state`, even if it was only written again (T34). For a driver's own task,
        which re-reads the keys it follows; it ends when that task is cancelled.
        """
        with self._device.wakes() as dirty:
            while True:
                dirty.clear()
                self._device.forget_hints()
                yield
                await dirty.wait()

    async def republish(self, values: Mapping[str, Value]) -> None:
        """Write keys of our directory while Connected, and write `state` again with its present value, so that the
        other end notices and reads the keys again (T34). All of it is one transaction, and no change of state.

        Args:
            values: by key; feature_upper and feature-upper are one.

        Raises:
            ConnectionEnded: the device is no longer Connected, or no longer ours.
        """
        device = self._device
        state_path, written = device.path + "/state", keys(values)

        async def body(tx: Transaction) -> None:
            try:
                standing = parse_state(await tx.read(state_path))
            except NodeNotFound:
                raise ConnectionEnded("removed") from None
            if standing is not State.CONNECTED or device.state is not State.CONNECTED:
                raise ConnectionEnded(f"{standing.title} is no state to publish keys in")
            writes = [tx.write(f"{device.path}/{key}", value) for key, value in written.items()]
            await asyncio.gather(*writes, tx.write(state_path, encode(int(standing))))

        await device.store.transaction(body)
        device.timeline.record(device.side.value, f"write {', '.join(written)}")

    async def report(self, error: Exception) -> bool:
        """Write an error node, without ending the connection.

        Returns:
            Whether the node is there now. A device that has gone leaves no node behind (T7).
        """
        return await self._device.report(error)

    async def clear_error(self) -> None:
        """Remove the error node that `report` wrote."""
        await self._device.clear_error()
