"""Linux's own side of the backends: its bus of devices in sysfs, and the switches that say when its drivers bind.

The kernel makes a bus device for every backend directory that appears at Initialising, of any class, and binds the
driver that fits, if one is loaded: xen-blkback for vbd, xen-netback for vif. While `drivers_autoprobe` is 0 it still
makes the devices and binds nothing; a device whose bus id is written to `drivers_probe` is bound alone.

Source: Linux 6.1, drivers/base/bus.c (drivers_autoprobe_store, drivers_probe_store, bus_add_driver),
drivers/xen/xenbus/xenbus_probe_backend.c (backend_bus_id), xenbus_probe.c (xenbus_probe_node).
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xenbusd.process.child import Child

BUS = "/sys/bus/xen-backend"

MODPROBE = "/sbin/modprobe"
"""Where the kernel itself looks for it (CONFIG_MODPROBE_PATH)."""

MODPROBE_S = 5.0
"""How long loading a module may take; libxl gives up on its device after 10 s."""

UEVENT_BYTES = 16384
"""More than the kernel puts into one message (UEVENT_BUFFER_SIZE and a header)."""


class KernelBus:
    """The bus `xen-backend` of this kernel. What is read here is what the kernel says at that moment.

    Args:
        root: the bus's folder in sysfs.
        modprobe: the program that loads modules.
    """

    def __init__(self, root: str = BUS, modprobe: str = MODPROBE) -> None:
        self._root = root
        self._modprobe = modprobe

    @property
    def is_there(self) -> bool:
        """Whether this kernel has such a bus at all; one without Xen's backends has not."""
        return os.path.isdir(self._root)

    @property
    def autoprobe(self) -> bool:
        """Whether the kernel binds each new device, and on loading a driver each unbound one, by itself.

        Raises:
            OSError: there is no such switch.
        """
        with open(f"{self._root}/drivers_autoprobe", encoding="ascii") as file:
            return file.read().strip() != "0"

    def switch_autoprobe(self, on: bool) -> None:
        """Say whether the kernel is to bind by itself.

        Raises:
            OSError: there is no such switch, or we may not.
        """
        self._write("drivers_autoprobe", "1" if on else "0")

    def devices(self) -> list[str]:
        """The bus ids of all devices, such as "vbd-5-51712"; none where there is no bus."""
        return sorted(_names(f"{self._root}/devices"))

    def unbound(self) -> list[str]:
        """The bus ids of the devices that no driver of the kernel has."""
        return [bus_id for bus_id in self.devices() if self.driver(bus_id) is None]

    def drivers(self) -> frozenset[str]:
        """The drivers that are loaded, by the kernel's names for them, such as "vbd"."""
        return frozenset(_names(f"{self._root}/drivers"))

    def bound(self, driver: str) -> list[str]:
        """The bus ids of the devices that a driver has; none where it is not loaded."""
        return sorted(name for name in _names(f"{self._root}/drivers/{driver}") if re.fullmatch(r".+-\d+-\d+", name))

    def driver(self, bus_id: str) -> str | None:
        """The driver that a device is bound to; None: to none, or it is not there."""
        try:
            return os.path.basename(os.readlink(f"{self._root}/devices/{bus_id}/driver"))
        except OSError:
            return None

    def nodename(self, bus_id: str) -> str | None:
        """A device's directory in the store, below this domain's own: "backend/vbd/5/51712"; None: it is not there."""
        try:
            with open(f"{self._root}/devices/{bus_id}/nodename", encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return None

    def probe(self, bus_id: str) -> bool:
        """Have the kernel bind one device, as it would have done by itself.

        Returns:
            Whether it is bound now. It is not where no loaded driver fits, where the driver refuses it, and where the
            device has gone.

        Raises:
            OSError: we may not write there.
        Blocks: while the driver talks to the store.
        """
        try:
            self._write("drivers_probe", bus_id)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):  # gone; the driver's own refusal
                raise
        return self.driver(bus_id) is not None

    async def load(self, device_class: str) -> str | None:
        """Have the kernel's driver for a class loaded, if there is one.

        Returns:
            None, or why it is not: what modprobe says.
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
            raise OSError(error.errno, error.strerror, path) from None  # a failed write() names no file


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def open_uevents() -> socket.socket:
    """Open the kernel's broadcast of device events.

    Raises:
        OSError: it is not to be had here: in a sandbox without AF_NETLINK.
    Source: linux/netlink.h (NETLINK_KOBJECT_UEVENT); group 1 is the kernel's own broadcast.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
    try:
        sock.bind((0, 1))
    except OSError:
        sock.close()
        raise
    return sock


@contextmanager
def following(uevents: socket.socket, wake: Callable[[], object]) -> Iterator[None]:
    """Call `wake` whenever something happens on the bus, for a while; then close the socket.

    An event is only a hint, whoever sent it: what is there has to be looked at.
    """
    uevents.setblocking(False)
    loop = asyncio.get_running_loop()
    loop.add_reader(uevents.fileno(), _drain, uevents, wake)
    try:
        yield
    finally:
        loop.remove_reader(uevents.fileno())
        uevents.close()


def _drain(uevents: socket.socket, wake: Callable[[], object]) -> None:
    hint = False
    for _ in range(64):  # what is left then comes with the next turn of the loop
        try:
            message = uevents.recv(UEVENT_BYTES)
        except BlockingIOError:
            break
        except OSError:  # ENOBUFS: some were lost
            hint = True
            break
        hint = hint or b"SUBSYSTEM=xen-backend\0" in message
    if hint:
        wake()
