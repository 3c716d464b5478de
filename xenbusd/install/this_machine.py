"""Checks of this machine: whether it suits a role, whether it runs under Xen, and whether we are its root."""

from __future__ import annotations

import os
from contextlib import suppress

from xenbusd.config import SCRIPTS_DIR
from xenbusd.errors import UsageError
from xenbusd.install.plan import NEEDED_FOLDERS

ROOT = ""
"""What the paths of this machine begin with. Tests put a folder here."""

PACKAGES = {
    "/etc/systemd/system": "systemd is not installed; without it, run `xenbusd serve` by hand",
    SCRIPTS_DIR: "xen-utils-common is not installed: apt-get install xen-utils-common",
}
"""Why a folder of `NEEDED_FOLDERS` is missing, and what to do."""


def here(path: str) -> str:
    """Return an absolute path as it is on this machine."""
    return ROOT + path


def require_root(command: str) -> None:
    """Refuse to go on without the rights of root.

    Raises:
        UsageError
    """
    if os.geteuid() != 0:
        raise UsageError(f"files below /etc are root's: run `xenbusd {command}` as root, or see --dry-run and --root")


def check_folders(role: str) -> None:
    """Refuse a machine that lacks a folder of `NEEDED_FOLDERS`.

    Raises:
        UsageError: naming the package that brings it.
    """
    for path in NEEDED_FOLDERS[role]:
        if not os.path.isdir(here(path)):
            raise UsageError(f"there is no {path}: {PACKAGES[path]}")


def check_is_guest() -> None:
    """Refuse dom0; a driver domain is a guest.

    Raises:
        UsageError
    """
    with suppress(OSError), open(here("/proc/xen/capabilities"), encoding="ascii") as file:
        if "control_d" in file.read():
            raise UsageError("this is dom0, and --agent is for guests: leave it out")


def is_under_xen() -> bool:
    """Whether this machine has been booted under Xen."""
    return os.path.exists(here("/proc/xen"))
