"""Finds drivers: entry points of the group `xenbusd.drivers`, named "<device class>.<side>"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def claims(drivers: Mapping[DeviceClass, type[Driver[Any]]]) -> dict[DeviceClass, str | None]:
    """For each class that these backend drivers serve, the script that makes a device ours in arbiter mode.

    Returns:
        A bare name; None: every device of the class is ours.
    """
    return {name: driver.claimed_by_script for name, driver in drivers.items() if issubclass(driver, Backend)}


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
