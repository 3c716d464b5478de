"""Linux's bus of backend devices, in sysfs: its devices and drivers, and the switches that decide when it binds them.

The kernel makes a bus device for every backend directory that appears at Initialising, of any class, and binds it to
the driver for its class, if one is loaded. While `drivers_autoprobe` is 0 it still makes the devices, but binds none;
writing a device's bus id to `drivers_probe` binds that device alone.

Source: Linux 6.1, drivers/base/bus.c (drivers_autoprobe_store, drivers_probe_store, bus_add_driver),
drivers/xen/xenbus/xenbus_probe_backend.c (backend_bus_id), xenbus_probe.c (xenbus_probe_node).
"""

from __future__ import annotations

import errno
import os
import re

from xenbusd.process.child import Child

BUS = "/sys/bus/xen-backend"

MODPROBE = "/sbin/modprobe"
"""The path that the kernel itself uses (CONFIG_MODPROBE_PATH)."""

MODPROBE_S = 5.0
"""The longest that loading a module may take; libxl gives up on its device after 10 s."""


class KernelBus:
    """The bus `xen-backend` of this kernel. Nothing is cached: each call reads sysfs.

    Args:
        root: the bus's folder in sysfs.
        modprobe: the program that loads modules.
    """

    def __init__(self, root: str = BUS, modprobe: str = MODPROBE) -> None:
        self._root = root
        self._modprobe = modprobe

    @property
    def is_there(self) -> bool:
        """Whether this kernel has the bus; a kernel without support for Xen's backends does not."""
        return os.path.isdir(self._root)

    @property
    def autoprobe(self) -> bool:
        """Whether the kernel binds devices by itself: each new one, and each unbound one when its driver is loaded.

        Raises:
            OSError: there is no such switch.
        """
        with open(f"{self._root}/drivers_autoprobe", encoding="ascii") as file:
            return file.read().strip() != "0"

    def switch_autoprobe(self, on: bool) -> None:
        """Have the kernel bind devices by itself, or not.

        Raises:
            OSError: there is no such switch, or this process may not write it.
        """
        self._write("drivers_autoprobe", "1" if on else "0")

    def devices(self) -> list[str]:
        """The bus ids of all devices, such as "vbd-5-51712"; none where there is no bus."""
        return sorted(_names(f"{self._root}/devices"))

    def unbound(self) -> list[str]:
        """The bus ids of the devices that are bound to no driver."""
        return [bus_id for bus_id in self.devices() if self.driver(bus_id) is None]

    def drivers(self) -> frozenset[str]:
        """The drivers that are loaded, by their names on the bus, which are those of their classes, such as "vbd"."""
        return frozenset(_names(f"{self._root}/drivers"))

    def bound(self, driver: str) -> list[str]:
        """The bus ids of the devices that are bound to a driver; none where it is not loaded."""
        return sorted(name for name in _names(f"{self._root}/drivers/{driver}") if re.fullmatch(r".+-\d+-\d+", name))

    def driver(self, bus_id: str) -> str | None:
        """The driver that a device is bound to; None: it is bound to none, or does not exist."""
        try:
            return os.path.basename(os.readlink(f"{self._root}/devices/{bus_id}/driver"))
        except OSError:
            return None

    def nodename(self, bus_id: str) -> str | None:
        """A device's directory in the store, below this domain's own: "backend/vbd/5/51712"; None: no such device."""
        try:
            with open(f"{self._root}/devices/{bus_id}/nodename", encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return None

    def probe(self, bus_id: str) -> bool:
        """Have the kernel bind one device, as it does by itself while autoprobe is on.

        Returns:
            Whether the device is bound now. It is not if no driver for its class is loaded, if the driver refuses it,
            or if the device has gone.

        Raises:
            OSError: this process may not write there.
        Blocks: while the driver uses the store.
        """
        try:
            self._write("drivers_probe", bus_id)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):  # the device has gone; the driver refused it
                raise
        return self.driver(bus_id) is not None

    async def load(self, device_class: str) -> str | None:
        """Load the kernel's driver for a class, if there is one.

        Returns:
            None if it is loaded now; otherwise why not, in modprobe's words.
        """
        alias = f"xen-backend:{device_class}"
        try:
            modprobe = Child([self._modprobe, alias])
        except OSError as error:
            return f"{self._modprobe} cannot be run: {error.strerror}"
        if not await modprobe.finish(MODPROBE_S):
            return f"{self._modprobe} {alias} has not ended within {MODPROBE_S:g} s"
        if modprobe.status == 0:
            return None
        return modprobe.last_words or f"{self._modprobe} exited with {modprobe.status}"

    def _write(self, name: str, text: str) -> None:
        path = f"{self._root}/{name}"
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None  # the error of a write() has no path


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
