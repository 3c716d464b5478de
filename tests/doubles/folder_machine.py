"""A folder that stands for a machine on which xenbusd is installed, with programs that record how they are called."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from xenbusd.cli import run

SERVE_FILES = {
    "/etc/systemd/system/xenbusd.service",
    "/etc/tmpfiles.d/xenbusd.conf",
    "/etc/xen/scripts/block-xenbusd",
    "/etc/xenbusd.toml",
}
AGENT_FILES = {"/etc/systemd/system/xenbus-agent.service", "/etc/tmpfiles.d/xenbusd.conf", "/etc/xenbus-agent.toml"}
EXCLUSIVE = "/etc/modprobe.d/xenbusd.conf"
ARBITER = "/etc/systemd/system/xenbusd.service.d/arbiter.conf"
RECORD = "/var/lib/xenbusd/installed.json"
PROGRAM = "/opt/xenbusd/bin/xenbusd"


class FolderMachine:
    """A Debian dom0 with systemd, below a folder.

    Args:
        root: the folder, empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "fake-bin"
        for folder in ("etc/systemd/system", "etc/xen/scripts", "proc/xen", "run/systemd/system", "fake-bin"):
            (root / folder).mkdir(parents=True)
        self.program("systemctl", '[ "$1" != is-active ] || exit 3')
        self.program("modprobe", "exit 0")

    def program(self, name: str, script: str) -> None:
        """Put a program into PATH that does `script`; `calls` shows how it is called."""
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.root}/calls\n{script}\n')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        """How programs have been called since this was last asked."""
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.replace(" --quiet", "") for line in lines]

    def xenbusd(self, *words: str, status: int = 0) -> list[str]:
        """Run `xenbusd` with these words; return the lines that it printed."""
        result = invoke(*words)
        assert result.exit_code == status, result.output
        return str(result.output).splitlines()

    def install(self, *words: str, status: int = 0) -> list[str]:
        """Run `xenbusd install` for a program that may be in a unit."""
        return self.xenbusd("install", "--program", PROGRAM, *words, status=status)

    def files(self) -> set[str]:
        """The files below /etc and /var."""
        paths = [path for top in ("etc", "var") for path in (self.root / top).rglob("*") if not path.is_dir()]
        return {f"/{path.relative_to(self.root)}" for path in paths}

    def text(self, path: str) -> str:
        """A file's contents."""
        return (self.root / path[1:]).read_text()

    def blkback(self, *disks: str) -> None:
        """Load Linux's own disk backend, with these disks."""
        folder = self.root / "sys/bus/xen-backend/drivers/vbd"
        folder.mkdir(parents=True)
        for name in ("bind", "uevent", *disks):
            (folder / name).touch()


def invoke(*words: str) -> Result:
    """Run `xenbusd`."""
    return CliRunner().invoke(run.main, list(words))
