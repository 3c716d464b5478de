"""`xenbusd install` and `uninstall`: their options, and which of them exclude each other.

xenbusd.install.installer does the work. Both print a line for each thing that they do.
"""

from __future__ import annotations

import click

from xenbusd.errors import UsageError
from xenbusd.install import installer


def install(
    *, agent: bool, mode: str | None, enable: bool, now: bool, root: str | None, program: str | None, dry_run: bool
) -> None:
    """Install the backends, or with `agent` the frontends; the other options are those of `installer.install`.

    Raises:
        XenbusdError: as `installer.install` does; UsageError also for options that exclude each other.
    """
    if agent and mode is not None:
        raise UsageError("--mode is about Linux's backends, and --agent installs frontends: leave one of them out")
    if now and root is not None:
        raise UsageError("--now starts the service on this machine, and --root installs into a folder: leave one out")
    installer.install(
        "agent" if agent else "serve",
        mode=mode,
        enable=enable,
        now=now,
        root=root,
        program=program,
        dry_run=dry_run,
        say=click.echo,
    )


def uninstall(*, root: str | None, force: bool, dry_run: bool) -> None:
    """Remove what was installed; the options are those of `installer.uninstall`.

    Raises:
        XenbusdError: as `installer.uninstall` does.
    """
    installer.uninstall(root=root, force=force, dry_run=dry_run, say=click.echo)
