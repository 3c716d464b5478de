"""The names of a device pair, and where its directories are in the store: absolute paths only (T4). Pure.

Source: docs/misc/xenstore-paths.pandoc; interop with libxl: libxl_device.c (libxl__device_generic_add).
Decision: D46.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from xenbusd.bus.state import Side
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, DOMID_FIRST_RESERVED, DeviceClass, Devid, Domid, is_device_class
from xenbusd.schema import device_class

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)

BUS_ID_MAX = 19
"""The longest bus id of a device such as "vbd-5-51712", in characters. Linux has room for one more byte, the final NUL,
and silently makes no bus device for a longer one (include/xen/xenbus.h, XEN_BUS_ID_SIZE)."""


@dataclass(frozen=True)
class DeviceId:
    """One device pair: a class, the two domains, and a number.

    Its name, `str(id)`, is "vbd/3/51712", or "vbd/3/51712@7" if its backend is in domain 7 rather than in domain 0. The
    frontend domain has only one of the two: a class and a number are unique there.
    """

    device_class: DeviceClass
    frontend_domid: Domid
    devid: Devid
    backend_domid: Domid = DOM0

    def __str__(self) -> str:
        backend = f"@{self.backend_domid}" if self.backend_domid != DOM0 else ""
        return f"{self.device_class}/{self.frontend_domid}/{self.devid}{backend}"

    @property
    def log_name(self) -> str:
        """The name in log lines and in the run directory, and Linux's bus id: "vbd-3-51712". It leaves the backend's
        domain out, which is the same for all backends of a process."""
        return bus_id(self.device_class, self.frontend_domid, self.devid)

    @cached_property
    def backend_path(self) -> str:
        """The backend's directory."""
        return f"{backend_root(self.backend_domid, self.device_class)}/{self.frontend_domid}/{self.devid}"

    @cached_property
    def frontend_path(self) -> str:
        """The frontend's directory."""
        return f"{frontend_root(self.frontend_domid, self.device_class)}/{self.devid}"

    @property
    def libxl_path(self) -> str:
        """Where libxl records the devices that it manages; libxl runs the hotplug scripts of these devices (T25)."""
        return f"/libxl/{self.frontend_domid}/device/{self.device_class}/{self.devid}"

    def path(self, side: Side) -> str:
        """The directory of one end."""
        return self.backend_path if side is Side.BACKEND else self.frontend_path

    def run_path(self, side: Side, run_dir: str, suffix: str) -> str:
        """Where an end's driver has a file of the device's in its run directory: "/run/xenbusd/vbd-51712.sock" of a
        frontend, "/run/xenbusd/vbd-3-51712.nbd" of a backend, whose process serves several domains."""
        name = self.log_name if side is Side.BACKEND else f"{self.device_class}-{self.devid}"
        return f"{run_dir}/{name}.{suffix}"

    def error_path(self, side: Side) -> str:
        """Where an end leaves its error: "<errno> <text>", in its own domain's part of the store (T58)."""
        domid = self.backend_domid if side is Side.BACKEND else self.frontend_domid
        home = f"/local/domain/{domid}/"
        return f"{home}error/{self.path(side).removeprefix(home)}/error"


def bus_id(device_class: str, domid: int | str, devid: int | str) -> str:
    """Linux's name for a device of a backend, "vbd-3-51712", from the parts of its path.

    Source: drivers/xen/xenbus/xenbus_probe_backend.c (backend_bus_id).
    """
    return f"{device_class}-{domid}-{devid}"


def parse_bus_id(text: str) -> tuple[DeviceClass, Domid, Devid] | None:
    """The inverse of `bus_id`: class, frontend's domid and devid; None if it is none."""
    name, *numbers = text.rsplit("-", 2)
    if len(numbers) != 2 or not is_device_class(name):
        return None
    domid, devid = parse_number(numbers[0], DOMID_FIRST_RESERVED - 1), parse_number(numbers[1])
    if domid is None or devid is None:
        return None
    return DeviceClass(name), Domid(domid), Devid(devid)


def backend_root(domid: Domid, device_class: DeviceClass) -> str:
    """The subtree that holds all backends of a class in a domain; the one watch of a class (T13)."""
    return f"/local/domain/{domid}/backend/{device_class}"


def frontend_root(domid: Domid, device_class: DeviceClass) -> str:
    """The subtree that holds all frontends of a class in a domain."""
    return f"/local/domain/{domid}/device/{device_class}"


def parse_number(text: str, limit: int = 0xFFFFFFFF) -> int | None:
    """Read a decimal number as paths spell it: no sign, no leading zero (T16); None if it is not one."""
    if _NUMBER.fullmatch(text) and int(text) <= limit:
        return int(text)
    return None


def parse_backend(root: str, path: str, backend_domid: Domid, device_class: DeviceClass) -> DeviceId | None:
    """The device of a path at or below `root`/<domid>/<devid>; None for any other path."""
    parts = path.removeprefix(root + "/").split("/") if path.startswith(root + "/") else []
    if len(parts) < 2:
        return None
    domid, devid = parse_number(parts[0], DOMID_FIRST_RESERVED - 1), parse_number(parts[1])
    if domid is None or devid is None:
        return None
    return DeviceId(device_class, Domid(domid), Devid(devid), backend_domid)


def parse_name(name: str) -> DeviceId:
    """Read a device's name as commands take it, the inverse of `str(id)`: "vbd/3/51712" or "vbd/3/51712@7".

    Raises:
        UsageError
    """
    pair, at, backend = name.partition("@")
    parts = pair.split("/")
    if len(parts) == 3 and is_device_class(parts[0]):
        domid, devid = parse_number(parts[1], DOMID_FIRST_RESERVED - 1), parse_number(parts[2])
        backend_domid = parse_number(backend, DOMID_FIRST_RESERVED - 1) if at else DOM0
        if domid is not None and devid is not None and backend_domid is not None:
            return DeviceId(DeviceClass(parts[0]), Domid(domid), Devid(devid), Domid(backend_domid))
    raise UsageError(
        f"{name!r} is not a device name: write CLASS/DOMID/DEVID, as in vbd/3/51712, followed by @ and the backend's "
        "domid if that is not 0"
    )


def check_class(name: str) -> DeviceClass:
    """Return a device class's name, or raise an error that says how to write one.

    Raises:
        UsageError
    """
    try:
        return device_class(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
