"""Linux's own backends for the classes that we serve: which are loaded, which devices they have, and unloading them.

Which module is Linux's backend for a class is said by our driver for the class (`Backend.linux_module`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from xenbusd import registry
from xenbusd.arbiter.kernel_bus import BUS, KernelBus
from xenbusd.bus.state import Side
from xenbusd.errors import UsageError, XenbusdError
from xenbusd.install.this_machine import here


class LinuxBackends:
    """The backends of this machine's kernel that compete with ours.

    Raises:
        DriverError: a driver of ours cannot be loaded.
    """

    def __init__(self) -> None:
        self._modules = registry.linux_modules(registry.find(Side.BACKEND))
        self._bus = KernelBus(here(BUS))

    @property
    def modules(self) -> list[str]:
        """All of them, as modprobe takes them, loaded or not."""
        return sorted(self._modules.values())

    def loaded(self) -> list[str]:
        """Those that are loaded."""
        drivers = self._bus.drivers()
        return sorted(module for device_class, module in self._modules.items() if device_class in drivers)

    def devices(self) -> list[str]:
        """The bus ids of the devices that they have, such as "vbd-3-51712"."""
        return sorted(bus_id for device_class in self._modules for bus_id in self._bus.bound(device_class))

    def unload(self, say: Callable[[str], None], *, dry_run: bool) -> None:
        """Unload them.

        Args:
            say: gets a line for each that was unloaded.
            dry_run: only see whether it could be done.

        Raises:
            UsageError: one of them has a device; nothing has been done.
            XenbusdError: modprobe has failed.
        Blocks: while modprobe runs.
        """
        if devices := self.devices():
            served = ", ".join(devices)
            raise UsageError(
                f"Linux's own backend serves {served}: shut those guests down; or leave --now out, and reboot"
            )
        for module in () if dry_run else self.loaded():
            done = subprocess.run(["modprobe", "-r", module], capture_output=True, text=True)
            if done.returncode != 0:
                raise XenbusdError(f"modprobe -r {module}: {done.stderr.strip()}")
            say(f"unloaded {module}")
