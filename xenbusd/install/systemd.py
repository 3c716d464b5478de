"""systemctl: the unit is enabled, started and stopped by it."""

from __future__ import annotations

import os
import subprocess

from xenbusd.errors import UsageError, XenbusdError
from xenbusd.install.this_machine import here


def is_init() -> bool:
    """Whether systemd is this machine's init, as sd_booted(3) finds out."""
    return os.path.isdir(here("/run/systemd/system"))


def is_active(unit: str) -> bool:
    """Whether a unit runs.

    Blocks: while systemctl runs.
    """
    return subprocess.run(["systemctl", "is-active", "--quiet", unit]).returncode == 0


def systemctl(*words: str, root: str | None = None) -> None:
    """Run systemctl.

    Args:
        words: a command, and units.
        root: a package builder's folder, for `enable` and `disable`; None: this machine.

    Raises:
        UsageError: there is no systemctl.
        XenbusdError: it has failed, with what it said.
    Blocks: while systemctl runs; `start` and `stop` take as long as the service does.
    """
    where = () if root is None else ("--root", root)
    try:
        done = subprocess.run(["systemctl", "--quiet", *where, *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError(f"systemctl {' '.join(words)}: there is no systemctl here (Debian: systemd)") from None
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise XenbusdError(f"systemctl {' '.join(words)}: {said}; journalctl -u {words[-1]} may say more")
