"""`xenbusd install` and `uninstall`: units, hotplug scripts and their kin go where Debian expects them, or away again.

Both say line by line what they do, and refuse before they have done anything.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from xenbusd import registry, toolstack
from xenbusd.bus.state import Side, State
from xenbusd.errors import StoreLost, UsageError, XenbusdError
from xenbusd.host.real import store_endpoint
from xenbusd.ids import Domid
from xenbusd.install.files import Installation, InstalledFile
from xenbusd.shipped import shipped_dir
from xenbusd.store.client import StoreClient

UNITS = {"serve": "xenbusd.service", "agent": "xenbus-agent.service"}
"""For each role, which is also the daemon's command."""

FILES = {
    "serve": {
        "/etc/systemd/system/xenbusd.service": "xenbusd.service",
        "/etc/tmpfiles.d/xenbusd.conf": "xenbusd.tmpfiles.conf",
        "/etc/xenbusd.toml": "xenbusd.toml",
    },
    "agent": {
        "/etc/systemd/system/xenbus-agent.service": "xenbus-agent.service",
        "/etc/tmpfiles.d/xenbusd.conf": "xenbusd.tmpfiles.conf",
        "/etc/xenbus-agent.toml": "xenbus-agent.toml",
    },
}
"""For each role, where its files go, and what they are called where they are shipped."""

MODES = {
    "exclusive": ("/etc/modprobe.d/xenbusd.conf", "xenbusd.modprobe.conf"),
    "arbiter": ("/etc/systemd/system/xenbusd.service.d/arbiter.conf", "xenbusd.arbiter.conf"),
}
"""How our devices are kept from Linux's own backends: the file that does it. Which one is installed is the mode."""

SCRIPTS = "/etc/xen/scripts"

FOLDERS = {
    "/etc/systemd/system": "systemd is not installed; without it, run `xenbusd serve` by hand",
    SCRIPTS: "xen-utils-common is not installed: apt-get install xen-utils-common",
}
"""Folders that other packages bring, and what it means if one is missing."""

SHIPPED_PROGRAM = "/opt/xenbusd/bin/xenbusd"
"""What shipped units call the program; an installed one names the program that installed it."""

NO_PLACE = re.compile(r"/(home|root|run|tmp|var/tmp)/")
"""Where no service can have its program: a user's, gone after a reboot, or hidden by the unit's sandbox."""

BLKBACK = "/sys/bus/xen-backend/drivers/vbd"
"""The devices of Linux's own disk backend; the folder is there while it is loaded."""

STORE_S = 20.0
"""How long the store may take to tell of all devices; where none answers there are none."""

HERE = ""
"""What this machine's own paths begin with; tests put a folder there."""


def install(
    *, agent: bool, mode: str | None, enable: bool, now: bool, root: str | None, program: str | None, dry_run: bool
) -> None:
    """Put what one role needs into place, and print what that was.

    Args:
        agent: a guest's frontends; otherwise the backends.
        mode: one of `MODES`, for the backends; None: as it is installed already.
        enable: have the service started at boot.
        now: have it started at boot, and start it.
        root: a package builder's folder; None: this machine.
        program: what the unit is to run; None: the xenbusd that runs this.
        dry_run: only say what would be done.

    Raises:
        UsageError: it cannot be as asked; nothing has been done.
        XenbusdError: a file cannot be written, or systemctl has failed.
    Blocks: reads and writes files, and waits for systemctl.
    """
    role = "agent" if agent else "serve"
    if agent and mode is not None:
        raise UsageError("--mode is about Linux's backends, and --agent installs frontends: leave one of them out")
    if root is None:
        _check_machine(role, dry_run=dry_run, now=now)
    elif now:
        raise UsageError("--now starts the service on this machine, and --root installs into a folder: leave one out")
    installation = Installation(root or HERE, dry_run=dry_run, say=click.echo)
    before = _installed_mode(installation)
    chosen = None if agent else _choose_mode(installation, mode)
    turned = root is None and not agent and before is not None and before != chosen
    if turned:
        _check_unused(before, "the mode cannot be changed")
    files = list(_files(role, chosen, _checked_program(program or _this_program(root), root)))
    if now and chosen == "exclusive":
        _unload_blkback(dry_run)
    changed = installation.put(role, files)
    if dry_run:
        return
    running = root is None and _systemd_runs()
    if running:
        _systemctl("daemon-reload")
    active = running and _is_active(UNITS[role])
    if active and turned:  # with the old mode's daemon and the new mode's files, two backends could have one disk
        _systemctl("restart", UNITS[role])
        click.echo(f"restarted {UNITS[role]}")
    if enable or now:
        _systemctl("enable", UNITS[role], root=root)
        click.echo(f"enabled {UNITS[role]}")
    if now and not active:
        _systemctl("start", UNITS[role])
        click.echo(f"started {UNITS[role]}")
    if running:
        for line in _what_next(
            role, chosen, outdated=active and changed and not turned, start=not (active or enable or now)
        ):
            click.echo(line)


def uninstall(*, root: str | None, force: bool, dry_run: bool) -> None:
    """Stop what was installed, take its files away, and print which; what the administrator has changed stays.

    Args:
        root: a package builder's folder; None: this machine.
        force: even if guests use our devices.
        dry_run: only say what would be done.

    Raises:
        UsageError: it cannot be as asked; nothing has been done.
        XenbusdError: a file cannot be removed, or systemctl has failed.
    Blocks: reads and removes files, and waits for systemctl.
    """
    if root is None and not dry_run:
        _require_root("uninstall")
    installation = Installation(root or HERE, dry_run=dry_run, say=click.echo)
    if not installation.roles:
        click.echo(f"nothing to remove: xenbusd is not installed below {root or '/'}")
        return
    if root is None and not force and "serve" in installation.roles:
        _check_unused(_installed_mode(installation), "without xenbusd they would wait for ever (--force: let them)")
    exclusive = _installed_mode(installation) == "exclusive"
    running = root is None and _systemd_runs()
    roles = () if dry_run else installation.roles
    for role in roles:
        if running:
            _systemctl("stop", UNITS[role])
            click.echo(f"stopped {UNITS[role]}")
        if root is None or shutil.which("systemctl"):
            _systemctl("disable", UNITS[role], root=root)
            click.echo(f"disabled {UNITS[role]}")
    installation.remove()
    if running and not dry_run:
        _systemctl("daemon-reload")
        with suppress(XenbusdError):  # a service that had failed would be listed for ever; others are forgotten already
            _systemctl("reset-failed", *(UNITS[role] for role in roles))
        if exclusive:
            click.echo("next: modprobe xen-blkback    (Linux's own disk backend; or it is loaded with the next disk)")


def _check_machine(role: str, *, dry_run: bool, now: bool) -> None:
    """Refuse what this machine is not made for."""
    if not dry_run:
        _require_root("install")
    needed = FOLDERS if role == "serve" else {path: why for path, why in FOLDERS.items() if path != SCRIPTS}
    for path, why in needed.items():
        if not os.path.isdir(HERE + path):
            raise UsageError(f"there is no {path}: {why}")
    if now and not _systemd_runs():
        raise UsageError("--now: systemd does not run here; leave it out, and the service starts with systemd")
    with suppress(OSError):
        if role == "agent" and "control_d" in Path(f"{HERE}/proc/xen/capabilities").read_text():
            raise UsageError("this is dom0, and --agent is for guests: leave it out")


def _require_root(command: str) -> None:
    if os.geteuid() != 0:
        raise UsageError(f"files below /etc are root's: run `xenbusd {command}` as root, or see --dry-run and --root")


def _installed_mode(installation: Installation) -> str | None:
    """The mode that is installed, if one is."""
    return next((name for name, (path, _) in MODES.items() if path in installation.recorded("serve")), None)


def _choose_mode(installation: Installation, mode: str | None) -> str:
    """The mode that is asked for, or installed already."""
    chosen = mode or _installed_mode(installation)
    if chosen is None:
        raise UsageError(
            "how are Linux's own backends to be kept from our disks? --mode arbiter: they serve all other disks beside "
            "ours; --mode exclusive: they are never loaded, and xenbusd serves every disk (docs/operating.md)"
        )
    for name, (path, _) in MODES.items():
        if name != chosen and installation.is_changed(path):
            raise UsageError(f"{path} makes the mode {name}, and is not as we ship it: move it away, and try again")
    return chosen


def _files(role: str, mode: str | None, program: str) -> Iterator[InstalledFile]:
    """What is to be installed."""
    sources = dict(FILES[role])
    if mode is not None:
        path, name = MODES[mode]
        sources[path] = name
    for path, name in sources.items():
        data = Path(shipped_dir("systemd"), name).read_bytes()
        yield InstalledFile(path, data.replace(SHIPPED_PROGRAM.encode(), program.encode()))
    if role == "serve":
        for script in sorted(Path(shipped_dir("hotplug")).iterdir()):
            if script.is_file():
                yield InstalledFile(f"{SCRIPTS}/{script.name}", script.read_bytes(), 0o755)


def _this_program(root: str | None) -> str:
    """The path of the xenbusd that runs this, as the system in `root` will see it."""
    called = Path(sys.argv[0]).absolute()
    beside = Path(sys.executable).absolute().parent / "xenbusd"
    found = next((path for path in (called, beside) if path.name == "xenbusd" and path.is_file()), None)
    if found is None:
        raise UsageError(f"there is no {beside} for the unit to run: install xenbusd with pip, or say --program")
    inside = Path(root).absolute() if root is not None else Path("/")
    return f"/{found.relative_to(inside)}" if found.is_relative_to(inside) else str(found)


def _checked_program(program: str, root: str | None) -> str:
    """Refuse a program that the unit could not run."""
    if not re.fullmatch(r"(/[A-Za-z0-9._+@-]+)+", program):
        raise UsageError(
            f"{program!r} cannot stand in a unit: it must be an absolute path of letters, digits and ._+@- only"
        )
    if root is None and NO_PLACE.match(program):
        raise UsageError(
            f"a service cannot have its program at {program}: install xenbusd where only root writes, "
            "python3 -m venv /opt/xenbusd && /opt/xenbusd/bin/pip install xenbusd, and run that one"
        )
    return program


def _unload_blkback(dry_run: bool) -> None:
    """Have Linux's own disk backend out of the way, unless it has disks."""
    if not os.path.isdir(HERE + BLKBACK):
        return
    if disks := _disks_of_blkback():
        raise UsageError(
            f"Linux's own backend serves {', '.join(disks)}: shut those guests down; or leave --now out, and reboot"
        )
    if not dry_run:
        done = subprocess.run(["modprobe", "-r", "xen-blkback"], capture_output=True, text=True)
        if done.returncode != 0:
            raise XenbusdError(f"modprobe -r xen-blkback: {done.stderr.strip()}")
        click.echo("unloaded xen-blkback")


def _disks_of_blkback() -> list[str]:
    """The bus ids of the disks that Linux's own backend has, such as vbd-3-51712."""
    with suppress(OSError):
        return sorted(name for name in os.listdir(HERE + BLKBACK) if re.fullmatch(r"vbd-\d+-\d+", name))
    return []


def _what_next(role: str, mode: str | None, *, outdated: bool, start: bool) -> Iterator[str]:
    """What is left to the administrator."""
    if mode == "exclusive" and os.path.isdir(HERE + BLKBACK):
        if disks := _disks_of_blkback():
            yield f"note: Linux's own backend serves {', '.join(disks)}: shut those guests down before the next command"
        yield "next: modprobe -r xen-blkback"
    if outdated:
        yield f"next: systemctl restart {UNITS[role]}    (devices stay connected, and wait for it)"
    if start:
        yield f"next: systemctl enable --now {UNITS[role]}"
    if role == "serve" and not os.path.exists(f"{HERE}/proc/xen"):
        yield "note: this machine does not run under Xen now; the service starts when it does"


def _systemd_runs() -> bool:
    """Whether systemd is this machine's init, as sd_booted(3) looks."""
    return os.path.isdir(f"{HERE}/run/systemd/system")


def _is_active(unit: str) -> bool:
    return subprocess.run(["systemctl", "is-active", "--quiet", unit]).returncode == 0


def _systemctl(*words: str, root: str | None = None) -> None:
    where = () if root is None else ("--root", root)
    try:
        done = subprocess.run(["systemctl", "--quiet", *where, *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError(f"systemctl {' '.join(words)}: there is no systemctl here (Debian: systemd)") from None
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise XenbusdError(f"systemctl {' '.join(words)}: {said}; journalctl -u {words[-1]} may say more")


def _check_unused(mode: str | None, what: str) -> None:
    """Refuse while a guest has a device of ours."""
    if used := asyncio.run(_used(mode)):
        raise UsageError(
            f"guests use {', '.join(used)}: {what}; shut the guests down, or detach the devices "
            "(xl block-detach, xenbusctl detach)"
        )


async def _used(mode: str | None) -> list[str]:
    """Our devices that are not closed, as the store says: a daemon may just be starting. None if there is no store."""
    claims = registry.Claims.of(registry.find(Side.BACKEND, None), shared=mode == "arbiter")
    found = []
    try:
        async with asyncio.timeout(STORE_S), StoreClient(store_endpoint()) as store:
            for id in await toolstack.devices(store, Domid(int(await store.read("domid")))):
                pair = await toolstack.observe(store, id)
                in_use = pair.backend not in (State.UNKNOWN, State.CLOSED)
                if in_use and claims.is_ours(id.device_class, pair.script):
                    found.append(str(id))
    except (StoreLost, TimeoutError):
        pass
    return found
