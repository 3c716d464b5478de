"""Finds drivers, and decides which devices are theirs.

Drivers are entry points of the group `xenbusd.drivers`, named "<device class>.<side>". Where Linux has a backend for a
class as well, both can serve in one domain; `Claims` alone decides which of the two serves a device.

Decisions: D47, D18.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from xenbusd.bus.driver import API_VERSION, Backend, Driver
from xenbusd.bus.paths import check_class
from xenbusd.bus.state import Side
from xenbusd.errors import DriverError, UsageError
from xenbusd.ids import DeviceClass

GROUP = "xenbusd.drivers"


def find(side: Side, wanted: Iterable[str] | None = None) -> dict[DeviceClass, type[Driver[Any]]]:
    """Load the drivers of one side.

    Args:
        side: backends or frontends.
        wanted: the classes to load; None loads all there are.

    Returns:
        A driver for each device class, in the order of their names.

    Raises:
        DriverError: two drivers for one class; a driver that cannot be imported, is of another API version or of
            another class or side than its entry point says; a wanted class that has no driver.
    """
    points: dict[DeviceClass, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        name, _, point_side = point.name.rpartition(".")
        if point_side == side.value:
            device_class = _class_of(point, name)
            other = points.get(device_class)
            if other is not None and other.value != point.value:
                raise DriverError(
                    f"two {side.value} drivers for {name}: {other.value} and {point.value}; uninstall one of them"
                )
            points[device_class] = point
    names = sorted(points if wanted is None else {check_class(name) for name in wanted})
    missing = [name for name in names if name not in points]
    if missing:
        there_are = ", ".join(sorted(points)) or "none"
        raise DriverError(f"no {side.value} driver for {', '.join(missing)}; there are drivers for {there_are}")
    return {name: _load(points[name], name, side) for name in names}


@dataclass(frozen=True)
class Claims:
    """Decides whether a backend device is ours or Linux's.

    Args:
        scripts: for each class that we serve, the hotplug script, by its bare name, whose devices are ours; None: every
            device of the class is ours. See `Backend.claimed_by_script`.
    """

    scripts: Mapping[DeviceClass, str | None]

    @classmethod
    def of(cls, drivers: Mapping[DeviceClass, type[Driver[Any]]], *, shared: bool) -> Claims:
        """Return the claims of backend drivers.

        Args:
            drivers: from `find`; frontends among them claim nothing.
            shared: Linux's backends serve in this domain too (arbiter mode). Otherwise each class is ours as a whole.
        """
        backends = {name: driver for name, driver in drivers.items() if issubclass(driver, Backend)}
        return cls({name: driver.claimed_by_script if shared else None for name, driver in backends.items()})

    def serves(self, device_class: str) -> bool:
        """Whether we have a backend driver for a class."""
        return device_class in self.scripts

    def is_ours(self, device_class: str, script: str | bytes | None) -> bool:
        """Whether a device is ours to serve.

        Args:
            device_class: its class, in any spelling; no device of a class that we do not serve is ours.
            script: the node `script` of its backend directory, a bare name or a path; None: there is none.
        """
        if not self.serves(device_class):
            return False
        wanted = self.scripts[DeviceClass(device_class)]
        return wanted is None or os.path.basename(os.fsencode(script or b"")) == os.fsencode(wanted)


def linux_modules(drivers: Mapping[DeviceClass, type[Driver[Any]]]) -> dict[DeviceClass, str]:
    """The kernel modules with Linux's own backends for the classes of these drivers, as modprobe takes them."""
    found = {name: driver.linux_module for name, driver in drivers.items() if issubclass(driver, Backend)}
    return {name: module for name, module in found.items() if module is not None}


def _class_of(point: EntryPoint, name: str) -> DeviceClass:
    try:
        return check_class(name)
    except UsageError as error:
        raise DriverError(f"entry point {point.name!r} of {point.value}: {error}") from None


def _load(point: EntryPoint, device_class: DeviceClass, side: Side) -> type[Driver[Any]]:
    try:
        driver = point.load()
    except Exception as error:
        raise DriverError(f"driver {point.value} of {point.name} cannot be loaded: {error!r}") from error
    if not (isinstance(driver, type) and issubclass(driver, Driver)):
        raise DriverError(f"{point.value} is no driver: it is not a subclass of Backend or Frontend")
    if driver.api_version != API_VERSION:
        raise DriverError(
            f"driver {point.value} is for API version {driver.api_version}, this is version {API_VERSION}"
        )
    if not (hasattr(driver, "side") and hasattr(driver, "device_class")):
        raise DriverError(f"{point.value} must be a Backend or Frontend with device_class={str(device_class)!r}")
    if driver.device_class != device_class or driver.side is not side:
        raise DriverError(
            f"entry point {point.name} names {point.value}, which is the {driver.side.value} of {driver.device_class}"
        )
    return driver
