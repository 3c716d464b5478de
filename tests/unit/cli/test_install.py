"""xenbusd.cli.install: what is put where, what is refused, what systemctl is told; on a machine made of folders."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from xenbusd.cli import install, run
from xenbusd.config import Config, load
from xenbusd.shipped import shipped_dir
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.testing.processes import ProcessMachine
from xenbusd.testing.processes import machine as processes

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


class Machine:
    """A folder that stands for this machine, with programs that write down how they are called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "fake-bin"
        for folder in ("etc/systemd/system", "etc/xen/scripts", "proc/xen", "run/systemd/system", "fake-bin"):
            (root / folder).mkdir(parents=True)
        self.program("systemctl", '[ "$1" != is-active ] || exit 3')
        self.program("modprobe", "exit 0")

    def program(self, name: str, script: str) -> None:
        """Put a program into PATH that does `script` and is remembered by `calls`."""
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.root}/calls\n{script}\n')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        """How programs have been called since the last look."""
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
        folder = self.root / install.BLKBACK[1:]
        folder.mkdir(parents=True)
        for name in ("bind", "uevent", *disks):
            (folder / name).touch()


def invoke(*words: str) -> Result:
    """Run `xenbusd`."""
    return CliRunner().invoke(run.main, list(words))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A Debian dom0 with systemd, and us as root."""
    machine = Machine(tmp_path)
    monkeypatch.setattr(install, "HERE", str(tmp_path))
    monkeypatch.setattr(install, "store_endpoint", lambda: unix_endpoint(str(tmp_path / "no-store")))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{machine.bin}:{os.environ['PATH']}")
    return machine


@pytest.mark.parametrize(("mode", "file"), [("exclusive", EXCLUSIVE), ("arbiter", ARBITER)])
def test_install_of_the_backends(machine: Machine, mode: str, file: str) -> None:
    """Unit, scripts, configuration and the mode's file are there; each is named; the next command is said."""
    lines = machine.install("--mode", mode)
    assert {line.removeprefix("installed ") for line in lines[:-1]} == SERVE_FILES | {file}
    assert machine.files() == SERVE_FILES | {file, RECORD}
    assert lines[-1] == "next: systemctl enable --now xenbusd.service"
    assert machine.calls() == ["systemctl daemon-reload", "systemctl is-active xenbusd.service"]
    assert os.access(machine.root / "etc/xen/scripts/block-xenbusd", os.X_OK)


def test_install_of_the_agent(machine: Machine) -> None:
    """A guest has neither hotplug scripts nor Linux's backends, and needs no xen-utils-common."""
    (machine.root / "etc/xen/scripts").rmdir()
    lines = machine.install("--agent")
    assert machine.files() == AGENT_FILES | {RECORD}
    assert lines[-1] == "next: systemctl enable --now xenbus-agent.service"


def test_install_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second time changes nothing, needs no mode, wants no restart; a new version wants one of a running daemon."""
    machine.install("--mode", "exclusive")
    machine.program("systemctl", "exit 0")  # it runs now
    assert machine.install() == [f"unchanged {path}" for path in install_order("exclusive")]
    new = machine.root / "new/systemd"
    shutil.copytree(shipped_dir("systemd"), new)
    (new / "xenbusd.service").write_text("[Unit]\n")
    monkeypatch.setattr(install, "shipped_dir", lambda name: str(new) if name == "systemd" else shipped_dir(name))
    lines = machine.install()
    assert "updated /etc/systemd/system/xenbusd.service" in lines
    assert lines[-1] == "next: systemctl restart xenbusd.service    (devices stay connected, and wait for it)"


def install_order(mode: str) -> list[str]:
    """The files of the backends in the order in which they are told of."""
    return [*install.FILES["serve"], install.MODES[mode][0], "/etc/xen/scripts/block-xenbusd"]


def test_change_of_mode(machine: Machine) -> None:
    """The file of one mode goes when the other's comes, both ways."""
    machine.install("--mode", "exclusive")
    assert f"removed {EXCLUSIVE}" in machine.install("--mode", "arbiter")
    assert machine.files() == SERVE_FILES | {ARBITER, RECORD}
    assert f"removed {ARBITER}" in machine.install("--mode", "exclusive")
    assert machine.files() == SERVE_FILES | {EXCLUSIVE, RECORD}


def test_change_of_mode_under_a_running_daemon(machine: Machine) -> None:
    """The old mode's daemon does not go on with the new mode's files: it is restarted at once."""
    machine.install("--mode", "exclusive")
    machine.program("systemctl", "exit 0")
    machine.calls()
    assert machine.install("--mode", "arbiter")[-1] == "restarted xenbusd.service"
    assert machine.calls()[-1] == "systemctl restart xenbusd.service"


@pytest.mark.parametrize("installed", [True, False])
def test_a_file_that_makes_the_other_mode(machine: Machine, installed: bool) -> None:
    """A fragment that is not ours, or no longer as it was, would undo the mode: refused before anything is done."""
    if installed:
        machine.install("--mode", "exclusive")
    (machine.root / "etc/modprobe.d").mkdir(exist_ok=True)
    (machine.root / EXCLUSIVE[1:]).write_text("install xen-blkback /bin/false\n")
    files = machine.files()
    (line,) = machine.install("--mode", "arbiter", status=2)
    assert f"{EXCLUSIVE} makes the mode exclusive, and is not as we ship it: move it away" in line
    assert machine.files() == files


def test_a_mode_has_to_be_chosen(machine: Machine) -> None:
    """Without a mode nothing is installed, and the sentence says what the two are."""
    (line,) = machine.install(status=2)
    assert "--mode arbiter: " in line
    assert "--mode exclusive: " in line
    assert machine.files() == set()


def test_enable_and_now(machine: Machine) -> None:
    """--enable is for the next boot, --now for both; each says what it did."""
    machine.program(
        "systemctl", 'case $1 in is-active) [ -e "$0.active" ] ;; --quiet) [ "$2" != start ] || : >"$0.active" ;; esac'
    )
    told = ["systemctl daemon-reload", "systemctl is-active xenbusd.service", "systemctl enable xenbusd.service"]
    assert machine.install("--mode", "arbiter", "--enable")[-1] == "enabled xenbusd.service"
    assert machine.calls() == told
    assert machine.install("--now")[-2:] == ["enabled xenbusd.service", "started xenbusd.service"]
    assert machine.calls() == [*told, "systemctl start xenbusd.service"]
    assert machine.install("--now", "--mode", "exclusive")[-2:] == [
        "restarted xenbusd.service",
        "enabled xenbusd.service",
    ]


def test_a_service_that_does_not_start(machine: Machine) -> None:
    """What systemctl says is passed on, with where to read more."""
    machine.program(
        "systemctl", '[ "$1" != is-active ] || exit 3; [ "$2" != start ] || { echo "Job failed." >&2; exit 1; }'
    )
    lines = machine.install("--mode", "arbiter", "--now", status=1)
    assert lines[-1].endswith(
        "systemctl start xenbusd.service: Job failed.; journalctl -u xenbusd.service may say more"
    )


def test_exclusive_now_unloads_blkback(machine: Machine) -> None:
    """Linux's own disk backend is unloaded before we start, if it has no disk."""
    machine.blkback()
    assert "unloaded xen-blkback" in machine.install("--mode", "exclusive", "--now")
    assert machine.calls()[0] == "modprobe -r xen-blkback"


def test_exclusive_now_with_disks_in_use(machine: Machine) -> None:
    """Unloading a driver under a running guest would take its disk away: refused, and nothing is done."""
    machine.blkback("vbd-3-51712", "vbd-4-51712")
    (line,) = machine.install("--mode", "exclusive", "--now", status=2)
    assert "Linux's own backend serves vbd-3-51712, vbd-4-51712: shut those guests down" in line
    assert (machine.files(), machine.calls()) == (set(), [])


def test_exclusive_later_says_what_is_in_the_way(machine: Machine) -> None:
    """Without --now the administrator is told of the disks, and of the command."""
    machine.blkback("vbd-3-51712")
    lines = machine.install("--mode", "exclusive")
    assert lines[-3].startswith("note: Linux's own backend serves vbd-3-51712: ")
    assert lines[-2:] == ["next: modprobe -r xen-blkback", "next: systemctl enable --now xenbusd.service"]


def test_modprobe_fails(machine: Machine) -> None:
    """If the driver does not go, that is said, and nothing is installed."""
    machine.blkback()
    machine.program("modprobe", 'echo "Module xen_blkback is in use." >&2; exit 1')
    (line,) = machine.install("--mode", "exclusive", "--now", status=1)
    assert "modprobe -r xen-blkback: Module xen_blkback is in use." in line
    assert machine.files() == set()


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("etc/xen/scripts", "there is no /etc/xen/scripts: xen-utils-common is not installed"),
        ("etc/systemd/system", "there is no /etc/systemd/system: systemd is not installed"),
    ],
)
def test_a_folder_is_missing(machine: Machine, folder: str, sentence: str) -> None:
    """The sentence says which package brings the folder."""
    (machine.root / folder).rmdir()
    (line,) = machine.install("--mode", "exclusive", status=2)
    assert sentence in line
    assert machine.files() == set()


def test_not_root(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user may look, with --dry-run, and no more."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (line,) = machine.install("--mode", "exclusive", status=2)
    assert "run `xenbusd install` as root" in line
    (line,) = machine.xenbusd("uninstall", status=2)
    assert "run `xenbusd uninstall` as root" in line
    lines = machine.install("--mode", "exclusive", "--dry-run")
    assert {line.removeprefix("would have installed ") for line in lines} == SERVE_FILES | {EXCLUSIVE}
    assert (machine.files(), machine.calls()) == (set(), [])


def test_what_does_not_go_together(machine: Machine) -> None:
    """Options that contradict each other are refused."""
    assert "--mode is about Linux's backends" in machine.install("--agent", "--mode", "arbiter", status=2)[0]
    assert "--now starts the service on this machine" in machine.install("--now", "--root", "/x", status=2)[0]
    assert machine.files() == set()


def test_the_agent_is_not_for_dom0(machine: Machine) -> None:
    """In dom0 the agent's unit would never start, so it is refused; in a driver domain it is not."""
    (machine.root / "proc/xen/capabilities").write_text("control_d\n")
    assert "this is dom0, and --agent is for guests" in machine.install("--agent", status=2)[0]
    (machine.root / "proc/xen/capabilities").write_text("")
    machine.install("--agent")


def test_without_systemd_as_init(machine: Machine) -> None:
    """In a chroot files are installed and nobody is told; --now is refused."""
    (machine.root / "run/systemd/system").rmdir()
    assert "systemd does not run here" in machine.install("--mode", "arbiter", "--now", status=2)[0]
    machine.install("--mode", "arbiter", "--enable")
    assert machine.calls() == ["systemctl enable xenbusd.service"]


def test_not_under_xen(machine: Machine) -> None:
    """On a machine that has not been booted into Xen yet, that is said."""
    (machine.root / "proc/xen").rmdir()
    assert "does not run under Xen now" in machine.install("--mode", "arbiter")[-1]


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("/tmp/venv/bin/xenbusd", "a service cannot have its program at /tmp/venv/"),
        ("bin/xenbusd", "it must be an absolute path"),
        ("/opt/my tools/xenbusd", "cannot stand in a unit"),
        ("/opt/50%/xenbusd", "cannot stand in a unit"),
    ],
)
def test_a_program_that_no_unit_can_run(machine: Machine, program: str, sentence: str) -> None:
    """Refused before anything is done."""
    (line,) = machine.xenbusd("install", "--mode", "exclusive", "--program", program, status=2)
    assert sentence in line
    assert machine.files() == set()


def test_the_unit_runs_the_program_that_installed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it is the very xenbusd that runs, as the machine in the root will see it; wherever else: say it."""
    program = tmp_path / "opt/venv/bin/xenbusd"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert invoke("install", "--root", str(tmp_path), "--mode", "arbiter").exit_code == 0
    unit = (tmp_path / "etc/systemd/system/xenbusd.service").read_text()
    assert "\nExecStart=/opt/venv/bin/xenbusd serve " in unit
    assert (tmp_path / ARBITER[1:]).read_text().count(" /opt/venv/bin/xenbusd release ") == 2
    assert PROGRAM not in unit

    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    result = invoke("install", "--root", str(tmp_path))
    assert result.exit_code == 2
    assert f"there is no {tmp_path}/xenbusd for the unit to run: install xenbusd with pip" in result.output


def test_uninstall(machine: Machine) -> None:
    """The service is stopped and disabled, the files go, systemd is told; a second time there is nothing to do."""
    machine.install("--mode", "exclusive", "--enable")
    machine.calls()
    lines = machine.xenbusd("uninstall")
    assert lines[:2] == ["stopped xenbusd.service", "disabled xenbusd.service"]
    assert {line.removeprefix("removed ") for line in lines[2:-1]} == SERVE_FILES | {EXCLUSIVE}
    assert lines[-1].startswith("next: modprobe xen-blkback")
    assert machine.files() == set()
    assert machine.calls() == [
        "systemctl stop xenbusd.service", "systemctl disable xenbusd.service", "systemctl daemon-reload",
        "systemctl reset-failed xenbusd.service",
    ]  # fmt: skip
    assert machine.xenbusd("uninstall") == ["nothing to remove: xenbusd is not installed below /"]
    assert machine.calls() == []


def test_uninstall_keeps_what_is_changed(machine: Machine) -> None:
    """The administrator's configuration stays, and is named."""
    machine.install("--mode", "arbiter")
    (machine.root / "etc/xenbusd.toml").write_text('[daemon]\nclasses = ["vbd"]\n')
    assert "kept /etc/xenbusd.toml: it has been changed" in machine.xenbusd("uninstall")
    assert machine.files() == {"/etc/xenbusd.toml"}


def test_uninstall_of_both_roles(machine: Machine) -> None:
    """A driver domain may have backends for others and an agent for itself; both go."""
    machine.install("--mode", "arbiter")
    machine.install("--agent")
    machine.xenbusd("uninstall")
    assert machine.files() == set()


def test_uninstall_dry_run(machine: Machine) -> None:
    """It says what would go, and stops nothing."""
    machine.install("--mode", "arbiter")
    machine.calls()
    assert f"would have removed {ARBITER}" in machine.xenbusd("uninstall", "--dry-run")
    assert machine.files() == SERVE_FILES | {ARBITER, RECORD}
    assert machine.calls() == []


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessMachine]:
    """A host's store, in the place of this machine's."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, processes(Path(folder)) as host:
        monkeypatch.setattr(install, "store_endpoint", lambda: unix_endpoint(host.store))
        yield host


async def devices(host: ProcessMachine, **states: int) -> None:
    """Put devices of guest 3 into the store, as xl makes them, with these states; a name is class_devid_script."""
    async with StoreClient(unix_endpoint(host.store)) as store:
        for name, state in states.items():
            kind, devid, script = name.split("_", 2)
            path = f"/local/domain/0/backend/{kind}/3/{devid}"
            await store.write(f"{path}/state", str(state))
            await store.write(f"{path}/script", f"/etc/xen/scripts/{script.replace('_', '-')}")


@pytest.mark.parametrize(
    ("mode", "used"),
    [("arbiter", "vbd/3/51712, vtpm/3/0"), ("exclusive", "vbd/3/51712, vbd/3/51728, vtpm/3/0")],
)
def test_uninstall_under_running_guests(machine: Machine, store: ProcessMachine, mode: str, used: str) -> None:
    """While a guest has a device from us, we do not go, unless told that it does not matter. Which ones are ours is a
    matter of the mode; what is closed, and what no driver of ours serves, is not in use."""
    machine.install("--mode", mode)
    before = machine.files()
    states = {"vbd_51712_block_xenbusd": 4, "vbd_51728_block": 4, "vbd_51744_block_xenbusd": 6, "vif_0_vif_bridge": 4}
    asyncio.run(devices(store, **states, vtpm_0_none=2))
    (line,) = machine.xenbusd("uninstall", status=2)
    assert f"guests use {used}: without xenbusd they would wait for ever (--force: let them)" in line
    assert machine.files() == before
    machine.xenbusd("uninstall", "--force")
    assert machine.files() == set()


def test_change_of_mode_under_running_guests(machine: Machine, store: ProcessMachine) -> None:
    """Linux's driver, loaded at the wrong moment, would take a guest's disk from us: not while a guest has one."""
    machine.install("--mode", "exclusive")
    asyncio.run(devices(store, vbd_51712_block_xenbusd=4))
    (line,) = machine.install("--mode", "arbiter", status=2)
    assert "guests use vbd/3/51712: the mode cannot be changed; shut the guests down" in line
    assert machine.files() == SERVE_FILES | {EXCLUSIVE, RECORD}


@pytest.mark.parametrize("name", ["xenbusd.toml", "xenbus-agent.toml"])
def test_the_shipped_configuration(name: str, tmp_path: Path) -> None:
    """It is accepted as it is, and changes nothing; each line that is commented out names a key that there is."""
    shipped = Path(shipped_dir("systemd"), name)
    assert load(str(shipped)) == replace(Config(), drivers=load(str(shipped)).drivers)
    awake = re.sub(r"^# (\w+ = )", r"\1", shipped.read_text(), flags=re.M)
    assert awake != shipped.read_text()
    (tmp_path / name).write_text(awake)
    config = load(str(tmp_path / name))
    assert (config.daemon.log_level, config.hotplug) == (Config().daemon.log_level, Config().hotplug)
    for device_class, table in config.drivers.items():
        package = Path(__file__).parents[3] / "drivers" / f"xenbusd_{device_class}"
        code = "".join(path.read_text() for path in package.glob("*.py"))
        assert [key for key in table if f'"{key}"' not in code] == []


def test_every_shipped_file_is_installed_by_somebody() -> None:
    """No file of systemd/ or hotplug/ is forgotten."""
    names = {name for of in install.FILES.values() for name in of.values()} | {
        name for _, name in install.MODES.values()
    }
    assert names == set(os.listdir(shipped_dir("systemd")))
