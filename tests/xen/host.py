"""Boots a real Xen host under QEMU's emulation: for tests in its dom0, whose reports it brings back, or for a shell.

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
TESTS_S = 2700
"""For all tests of one boot together, on a machine three times as slow as most, unless $XENBUSD_XEN_TESTS_S says
otherwise."""
STOP_S = 60

STORE = "oxenstored"
"""Debian's default; xenstored is the one in C. $XENBUSD_XEN_STORE says which one runs where a boot does not."""

XEN_OPTIONS = (
    "console=com1 com1=115200,8n1 dom0_mem=2048M,max:2048M dom0_max_vcpus=1 "
    "spec-ctrl=no xpti=no pv-l1tf=no smap=no smep=no"
)
TELL_ALL = "loglvl=all guest_loglvl=all"
TELL_ERRORS = "loglvl=error guest_loglvl=error"
LINUX_OPTIONS = "console=hvc0 quiet mitigations=off"
MEMORY_MB = 4096
"""Of the machine; dom0 has half of it."""
MACHINE = ("-accel", "tcg,thread=multi", "-cpu", "Nehalem-v1", "-smp", "2", "-nodefaults", "-no-reboot")

REPORTS = "reports.jsonl"
"""One serialised pytest report a line."""


def default_store() -> str:
    """The store's daemon that runs where nothing else was asked for."""
    return os.environ.get("XENBUSD_XEN_STORE", STORE)


class Boot:
    """One life of the host: from power-on to power-off.

    Args:
        items: ids of the tests to run in dom0, as pytest takes them.
        out: an empty folder for results: reports.jsonl, pytest.log, dom0.log, console.log (the hypervisor's too),
            kernel.log, store.txt, consoles/ of the guests.
        store: oxenstored or xenstored; by default as `default_store` says.
        tests_s: seconds for all tests together; by default as the environment or TESTS_S says.
        memory_mb: of the machine.

    Blocks: for minutes, in the constructor.
    """

    def __init__(
        self,
        items: Iterable[str],
        out: Path,
        *,
        store: str | None = None,
        tests_s: int | None = None,
        memory_mb: int = MEMORY_MB,
    ) -> None:
        self.out = out
        self.ended = ""
        """How the machine ended."""
        limit_s = tests_s or int(os.environ.get("XENBUSD_XEN_TESTS_S", TESTS_S))
        (out / "items").write_text("".join(f"{item}\n" for item in items))
        (out / "deadline_s").write_text(f"{limit_s}\n")
        (out / "store").write_text(f"{store or default_store()}\n")
        (out / "all").write_text(os.environ.get("XENBUSD_ALL", ""))
        image = build.image()
        with tempfile.TemporaryDirectory(prefix="xenbusd-host-") as folder:
            tree = build.stage(image, Path(folder) / "tree")
            terminal = ("-serial", f"file:{out}/console.log")
            command = machine(image, tree, out, Path(folder), terminal, TELL_ALL, "", memory_mb)
            self._run(command, BOOT_S + limit_s + STOP_S)
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

    def _run(self, command: list[str], limit_s: int) -> None:
        with open(self.out / "qemu.log", "wb") as log:
            try:
                status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=limit_s)
                self.ended = f"ended with status {status.returncode}"
            except subprocess.TimeoutExpired:
                self.ended = f"was switched off after {limit_s} s"


def machine(
    image: build.Image,
    tree: Path,
    out: Path,
    folder: Path,
    terminal: tuple[str, ...],
    xen_options: str,
    linux_options: str,
    memory_mb: int = MEMORY_MB,
) -> list[str]:
    """Make what one boot needs, and return the command that runs it.

    Args:
        image: the built host.
        tree: the work tree that dom0 finds at /mnt/tree, read-only.
        out: a folder that dom0 finds at /mnt/out; the guests' ramdisks are put there.
        folder: a folder for what QEMU loads.
        terminal: QEMU's options for the serial port, which is the hypervisor's console and dom0's.
        xen_options: more for the hypervisor's command line.
        linux_options: more for dom0's.
        memory_mb: of the machine.
    """
    ramdisks = out / "ramdisks"
    ramdisks.mkdir()
    build.guest_base(image).write(ramdisks / "base.cpio")
    build.guest_python(image).write(ramdisks / "python.cpio")
    meta = tree / "meta" if (tree / "meta").exists() else out / "meta"
    build.guest_tree(tree, meta).write(ramdisks / "tree.cpio")
    hypervisor = image.write_hypervisor(folder / "xen")
    initramfs = build.dom0_initramfs(image).write(folder / "initramfs")
    return [
        *("qemu-system-x86_64", *MACHINE, "-m", str(memory_mb), "-display", "none", *terminal),
        *("-kernel", str(hypervisor), "-append", f"{XEN_OPTIONS} {xen_options}"),
        *("-initrd", f"{image.kernel} {LINUX_OPTIONS} {linux_options},{initramfs}"),
        *_share("root", image.root, readonly=True),
        *_share("tree", tree, readonly=True),
        *_share("out", out, readonly=False),
    ]


def _share(tag: str, path: Path, *, readonly: bool) -> tuple[str, str]:
    """QEMU's options for a folder shared by 9p. A comma in a path is doubled."""
    written = str(path).replace(",", ",,")
    mode = ",readonly=on" if readonly else ""
    return "-virtfs", f"local,path={written},mount_tag={tag},security_model=none,multidevs=remap{mode}"
