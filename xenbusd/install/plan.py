"""The plan of an installation: its two roles, the files of each, and the file that keeps Linux's own backends away.

The tables name every file that is put into a system, so that a packager's list can be compared with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xenbusd.config import SCRIPTS_DIR
from xenbusd.errors import UsageError
from xenbusd.install.files import Installation, InstalledFile
from xenbusd.shipped import shipped_dir

UNITS = {"serve": "xenbusd.service", "agent": "xenbus-agent.service"}
"""The unit of each role. A role is named after its unit's command: backends serve, frontends are an agent."""

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
"""For each role its files: the path in the system, and the name in the shipped folder `systemd`."""

MODES = {
    "exclusive": ("/etc/modprobe.d/xenbusd.conf", "xenbusd.modprobe.conf"),
    "arbiter": ("/etc/systemd/system/xenbusd.service.d/arbiter.conf", "xenbusd.arbiter.conf"),
}
"""The ways to keep our devices from Linux's own backends, and the file that does it. The file that is installed is the
mode. Exclusive: Linux's backends are never loaded. Arbiter: they serve the devices that are not ours."""

NEEDED_FOLDERS = {
    "serve": ("/etc/systemd/system", SCRIPTS_DIR),
    "agent": ("/etc/systemd/system",),
}
"""Folders that other packages bring, and that each role needs."""

SHIPPED_PROGRAM = "/opt/xenbusd/bin/xenbusd"
"""The program's path in shipped units. An installed unit has the path of the program that it is to run."""


def files(role: str, mode: str | None, program: str) -> Iterator[InstalledFile]:
    """Yield the files of a role.

    Args:
        role: a key of `FILES`.
        mode: a key of `MODES`; None for the agent.
        program: what the unit runs, an absolute path.

    Blocks: reads shipped files.
    """
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
                yield InstalledFile(f"{SCRIPTS_DIR}/{script.name}", script.read_bytes(), 0o755)


def installed_mode(installation: Installation) -> str | None:
    """Return the mode that is installed; None: the backends are not installed."""
    return next((name for name, (path, _) in MODES.items() if path in installation.recorded("serve")), None)


def choose_mode(installation: Installation, asked: str | None) -> str:
    """Return the mode that is asked for, or else the one that is installed.

    Raises:
        UsageError: there is neither; or a file of the administrator's makes another mode.
    """
    chosen = asked or installed_mode(installation)
    if chosen is None:
        raise UsageError(
            "how are Linux's own backends to be kept from our devices? --mode arbiter: they serve all other devices "
            "beside ours; --mode exclusive: they are never loaded, and xenbusd serves every disk (docs/operating.md)"
        )
    for name, (path, _) in MODES.items():
        if name != chosen and installation.is_changed(path):
            raise UsageError(f"{path} makes the mode {name}, and is not as we ship it: move it away, and try again")
    return chosen
