"""Boots a real Xen host under QEMU's emulation, runs tests in its dom0, and brings back what they reported.

Every parameter is one that was found to work on machines without usable hardware virtualisation: /dev/kvm is not used.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.xen import build

BOOT_S = 180
"""From power-on to the first test, on a busy machine."""
TESTS_S = 900
"""For all tests together, unless $XENBUSD_XEN_TESTS_S says otherwise."""
STOP_S = 60

STORE = "oxenstored"
"""Debian's default; $XENBUSD_XEN_STORE may be xenstored, the one in C."""

XEN_OPTIONS = (
    "console=com1 com1=115200,8n1 dom0_mem=2048M,max:2048M dom0_max_vcpus=1 loglvl=all guest_loglvl=all "
    "spec-ctrl=no xpti=no pv-l1tf=no smap=no smep=no"
)
LINUX_OPTIONS = "console=hvc0 quiet mitigations=off"
MACHINE = ("-accel", "tcg,thread=multi", "-cpu", "Nehalem-v1", "-smp", "2", "-m", "4096", "-nodefaults", "-no-reboot")

REPORTS = "reports.jsonl"
"""One serialised pytest report a line."""


class Boot:
    """One life of the host: from power-on to power-off.

    Args:
        items: ids of the tests to run in dom0, as pytest takes them.
        out: an empty folder for results: reports.jsonl, pytest.log, dom0.log, console.log (the hypervisor's too),
            kernel.log, store.txt, consoles/ of the guests.

    Blocks: for minutes, in the constructor.
    """

    def __init__(self, items: Iterable[str], out: Path) -> None:
        self.out = out
        self.ended = ""
        """How the machine ended."""
        tests_s = int(os.environ.get("XENBUSD_XEN_TESTS_S", TESTS_S))
        (out / "items").write_text("".join(f"{item}\n" for item in items))
        (out / "deadline_s").write_text(f"{tests_s}\n")
        (out / "store").write_text(os.environ.get("XENBUSD_XEN_STORE", STORE) + "\n")
        image = build.image()
        with tempfile.TemporaryDirectory(prefix="xenbusd-host-") as folder:
            self._run(image, Path(folder), BOOT_S + tests_s + STOP_S)
        self._reports: dict[str, list[dict[str, Any]]] = {}
        for line in self._text(REPORTS).splitlines():
            report = json.loads(line)
            self._reports.setdefault(report["nodeid"], []).append(report)

    def reports(self, item: str) -> list[dict[str, Any]]:
        """What pytest in dom0 reported of a test: a report for each phase; empty if it did not get that far."""
        return self._reports.get(item, [])

    def story(self) -> str:
        """The end of what the machine said, for a test that was never reported."""
        parts = [f"The Xen host {self.ended}. All it left is in {self.out}; the ends of its logs:"]
        for name in ("console.log", "dom0.log", "pytest.log"):
            parts += [f"--- {name}", *self._text(name).splitlines()[-25:]]
        return "\n".join(parts)

    def _text(self, name: str) -> str:
        try:
            return (self.out / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _run(self, image: build.Image, folder: Path, limit_s: int) -> None:
        tree = build.stage(image, folder / "tree")
        ramdisks = self.out / "ramdisks"
        ramdisks.mkdir()
        build.guest_base(image).write(ramdisks / "base.cpio")
        build.guest_python(image).write(ramdisks / "python.cpio")
        build.guest_tree(tree).write(ramdisks / "tree.cpio")
        hypervisor = image.write_hypervisor(folder / "xen")
        initramfs = build.dom0_initramfs(image).write(folder / "initramfs")
        command = [
            *("qemu-system-x86_64", *MACHINE, "-display", "none", "-serial", f"file:{self.out}/console.log"),
            *("-kernel", str(hypervisor), "-append", XEN_OPTIONS),
            *("-initrd", f"{image.kernel} {LINUX_OPTIONS},{initramfs}"),
            *_share("root", image.root, readonly=True),
            *_share("tree", tree, readonly=True),
            *_share("out", self.out, readonly=False),
        ]
        with open(self.out / "qemu.log", "wb") as log:
            try:
                status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=limit_s)
                self.ended = f"ended with status {status.returncode}"
            except subprocess.TimeoutExpired:
                self.ended = f"was switched off after {limit_s} s"


def _share(tag: str, path: Path, *, readonly: bool) -> tuple[str, str]:
    """QEMU's options for a folder shared by 9p. A comma in a path is doubled."""
    written = str(path).replace(",", ",,")
    mode = ",readonly=on" if readonly else ""
    return "-virtfs", f"local,path={written},mount_tag={tag},security_model=none,multidevs=remap{mode}"
