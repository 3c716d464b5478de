"""The kernel's bus of backends as a folder of files, where the test plays the kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from xenbusd.arbiter.kernel_bus import KernelBus

MODPROBE = """#!/bin/sh
echo "$@" >>{log}
case $1 in
{known}) mkdir -p {drivers}/${{1#*:}} ;;
*) echo "modprobe: FATAL: Module $1 not found." >&2; exit 1 ;;
esac
"""


class KernelByHand(KernelBus):
    """A bus whose devices a test makes, and whose drivers bind what is written to drivers_probe, as Linux's do.

    Args:
        folder: empty, for the bus and for modprobe.
        modules: the classes whose drivers modprobe finds.
    """

    def __init__(self, folder: Path, *modules: str) -> None:
        self.folder = folder / "bus"
        (self.folder / "devices").mkdir(parents=True)
        (self.folder / "drivers").mkdir()
        (self.folder / "drivers_autoprobe").write_text("1\n")
        (self.folder / "drivers_probe").touch()
        modprobe = folder / "modprobe"
        self._loaded = folder / "loaded"
        self._loaded.touch()
        known = "|".join(f"xen-backend:{module}" for module in modules) or "none"
        modprobe.write_text(MODPROBE.format(log=self._loaded, known=known, drivers=self.folder / "drivers"))
        modprobe.chmod(0o755)
        self.probed: list[str] = []
        """The bus ids that were written to drivers_probe."""
        self.errno = 0
        """What each write to drivers_probe fails with."""
        self.autoprobes: list[str] = []
        """What was written to drivers_autoprobe, and `loaded` at that moment."""
        super().__init__(str(self.folder), str(modprobe))

    @property
    def loaded(self) -> list[str]:
        """The aliases that modprobe was asked for."""
        return self._loaded.read_text().split()

    def load_driver(self, name: str) -> None:
        """Have a driver loaded."""
        (self.folder / "drivers" / name).mkdir()

    def appear(self, device_class: str, domid: int, devid: int) -> str:
        """Make a device, as the kernel does for a directory in the store. Return its bus id."""
        bus_id = f"{device_class}-{domid}-{devid}"
        device = self.folder / "devices" / bus_id
        device.mkdir()
        (device / "nodename").write_text(f"backend/{device_class}/{domid}/{devid}\n")
        return bus_id

    def bind(self, bus_id: str) -> None:
        """Bind a device, as the kernel does by itself."""
        driver = self.folder / "drivers" / bus_id.split("-")[0]
        (self.folder / "devices" / bus_id / "driver").symlink_to(driver)

    def vanish(self, bus_id: str) -> None:
        """Remove a device, as the kernel does when its directory has gone."""
        device = self.folder / "devices" / bus_id
        (device / "driver").unlink(missing_ok=True)
        (device / "nodename").unlink()
        device.rmdir()

    def _write(self, name: str, text: str) -> None:
        if name == "drivers_autoprobe":
            super()._write(name, text + "\n")
            self.autoprobes.append(f"{text} with {' '.join(sorted(self.drivers())) or 'no driver'}")
            return
        self.probed.append(text)
        if self.errno or text not in self.devices():
            number = self.errno or errno.ENODEV
            raise OSError(number, os.strerror(number), f"{self.folder}/{name}")
        if text.split("-")[0] in self.drivers():
            self.bind(text)
