"""The path of the program that an installed unit runs: which xenbusd, and whether a service can run it there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from xenbusd.errors import UsageError

UNREACHABLE = re.compile(r"/(home|root|run|tmp|var/tmp)/")
"""Folders where no service can have its program: a user's, emptied at a reboot, or hidden by the unit's sandbox."""


def running_program(root: str | None) -> str:
    """Return the path of the xenbusd that runs this, as the system below `root` will see it.

    Args:
        root: a package builder's folder; None: this machine.

    Raises:
        UsageError: this is run by something else than an installed xenbusd.
    """
    called = Path(sys.argv[0]).absolute()
    beside = Path(sys.executable).absolute().parent / "xenbusd"
    found = next((path for path in (called, beside) if path.name == "xenbusd" and path.is_file()), None)
    if found is None:
        raise UsageError(f"there is no {beside} for the unit to run: install xenbusd with pip, or say --program")
    inside = Path(root).absolute() if root is not None else Path("/")
    return f"/{found.relative_to(inside)}" if found.is_relative_to(inside) else str(found)


def check_program(program: str, root: str | None) -> None:
    """Refuse a program that a unit could not run.

    Args:
        program: its path.
        root: as for `running_program`; on another system than this one any absolute path may be right.

    Raises:
        UsageError
    """
    if not re.fullmatch(r"(/[A-Za-z0-9._+@-]+)+", program):
        raise UsageError(
            f"{program!r} cannot stand in a unit: it must be an absolute path of letters, digits and ._+@- only"
        )
    if root is None and UNREACHABLE.match(program):
        raise UsageError(
            f"a service cannot have its program at {program}: install xenbusd where only root writes, "
            "python3 -m venv /opt/xenbusd && /opt/xenbusd/bin/pip install xenbusd, and run that one"
        )
