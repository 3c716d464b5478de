"""Installing a role and removing everything: what is checked first, what is done in which order, what is left to do.

Everything that can be refused is refused before anything is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress

from xenbusd.errors import DriverError, UsageError, XenbusdError
from xenbusd.install import this_machine
from xenbusd.install.files import Installation
from xenbusd.install.in_use import check_unused
from xenbusd.install.linux_backends import LinuxBackends
from xenbusd.install.plan import UNITS, choose_mode, files, installed_mode
from xenbusd.install.program import check_program, running_program
from xenbusd.install.systemd import is_active, is_init, systemctl

Say = Callable[[str], None]
"""Gets a line for each thing that is done, or would be done, or is left to the administrator."""


def install(
    role: str,
    *,
    mode: str | None,
    enable: bool,
    now: bool,
    root: str | None,
    program: str | None,
    dry_run: bool,
    say: Say,
) -> None:
    """Put what one role needs into place.

    Args:
        role: "serve", the backends, or "agent", a guest's frontends.
        mode: a key of `plan.MODES`, for the backends; None: as it is installed already.
        enable: have the service started at boot.
        now: have it started at boot, and start it; this machine only.
        root: a package builder's folder; None: this machine.
        program: what the unit is to run; None: the xenbusd that runs this.
        dry_run: only say what would be done.
        say: see `Say`.

    Raises:
        UsageError: it cannot be as asked; nothing has been done.
        DriverError: a driver cannot be loaded; nothing has been done.
        XenbusdError: a file cannot be written, or systemctl has failed.
    Blocks: reads and writes files, and waits for systemctl.
    """
    if root is None:
        _check_machine(role, now=now, dry_run=dry_run)
    installation = Installation(root or this_machine.ROOT, dry_run=dry_run, say=say)
    before = installed_mode(installation)
    chosen = choose_mode(installation, mode) if role == "serve" else None
    changes_mode = root is None and role == "serve" and before is not None and before != chosen
    if changes_mode:
        check_unused(before, "the mode cannot be changed")
    program = program or running_program(root)
    check_program(program, root)
    rivals = LinuxBackends() if root is None and chosen == "exclusive" else None
    if now and rivals is not None:
        rivals.unload(say, dry_run=dry_run)
    changed = installation.put(role, files(role, chosen, program))
    if dry_run:
        return
    unit = UNITS[role]
    under_systemd = root is None and is_init()
    if under_systemd:
        systemctl("daemon-reload")
    active = under_systemd and is_active(unit)
    if active and changes_mode:  # with the old mode's daemon and the new mode's files, two backends could have one disk
        systemctl("restart", unit)
        say(f"restarted {unit}")
    if enable or now:
        systemctl("enable", unit, root=root)
        say(f"enabled {unit}")
    if now and not active:
        systemctl("start", unit)
        say(f"started {unit}")
    if under_systemd:
        outdated = active and changed and not changes_mode
        for line in _next_steps(role, rivals, outdated=outdated, start=not (active or enable or now)):
            say(line)


def uninstall(*, root: str | None, force: bool, dry_run: bool, say: Say) -> None:
    """Stop what was installed and remove its files. A file that the administrator has changed stays.

    Args:
        root: a package builder's folder; None: this machine.
        force: even if guests use our devices.
        dry_run: only say what would be done.
        say: see `Say`.

    Raises:
        UsageError: it cannot be as asked; nothing has been done.
        DriverError: a driver cannot be loaded, and so nobody knows which devices are ours; nothing has been done.
        XenbusdError: a file cannot be removed, or systemctl has failed.
    Blocks: reads and removes files, and waits for systemctl.
    """
    if root is None and not dry_run:
        this_machine.require_root("uninstall")
    installation = Installation(root or this_machine.ROOT, dry_run=dry_run, say=say)
    if not installation.roles:
        say(f"nothing to remove: xenbusd is not installed below {root or '/'}")
        return
    mode = installed_mode(installation)
    if root is None and not force and "serve" in installation.roles:
        check_unused(mode, "without xenbusd they would wait for ever (--force: let them)")
    under_systemd = root is None and is_init()
    units = [] if dry_run else [UNITS[role] for role in installation.roles]
    for unit in units:
        if under_systemd:
            systemctl("stop", unit)
            say(f"stopped {unit}")
        if root is None or shutil.which("systemctl"):
            systemctl("disable", unit, root=root)
            say(f"disabled {unit}")
    installation.remove()
    if under_systemd and not dry_run:
        systemctl("daemon-reload")
        with suppress(XenbusdError):  # systemd would list a service that had failed for ever; it has forgotten others
            systemctl("reset-failed", *units)
        if mode == "exclusive":
            for module in _modules():
                say(f"next: modprobe {module}    (Linux's own backend; or it is loaded for the next device)")


def _check_machine(role: str, *, now: bool, dry_run: bool) -> None:
    """Refuse a role that does not suit this machine, and a user who may not install."""
    if not dry_run:
        this_machine.require_root("install")
    this_machine.check_folders(role)
    if now and not is_init():
        raise UsageError("--now: systemd does not run here; leave it out, and the service starts with systemd")
    if role == "agent":
        this_machine.check_is_guest()


def _modules() -> list[str]:
    with suppress(DriverError):  # at the end of a forced removal it is too late for that
        return LinuxBackends().modules
    return []


def _next_steps(role: str, rivals: LinuxBackends | None, *, outdated: bool, start: bool) -> Iterator[str]:
    """The steps that are left to the administrator, a line each."""
    if rivals is not None and (loaded := rivals.loaded()):
        if devices := rivals.devices():
            served = ", ".join(devices)
            yield f"note: Linux's own backend serves {served}: shut those guests down before the next command"
        yield from (f"next: modprobe -r {module}" for module in loaded)
    if outdated:
        yield f"next: systemctl restart {UNITS[role]}    (devices stay connected, and wait for it)"
    if start:
        yield f"next: systemctl enable --now {UNITS[role]}"
    if role == "serve" and not this_machine.is_under_xen():
        yield "note: this machine does not run under Xen now; the service starts when it does"
