"""xenbusd.install.installer: the files that are installed and removed, and the calls of systemctl."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.doubles.folder_machine import AGENT_FILES, ARBITER, EXCLUSIVE, RECORD, SERVE_FILES, FolderMachine
from xenbusd.install import plan
from xenbusd.shipped import shipped_dir


@pytest.mark.parametrize(("mode", "file"), [("exclusive", EXCLUSIVE), ("arbiter", ARBITER)])
def test_install_of_the_backends(machine: FolderMachine, mode: str, file: str) -> None:
    """Unit, scripts, configuration and the mode's file are installed; each is named, and so is the next command."""
    lines = machine.install("--mode", mode)
    assert {line.removeprefix("installed ") for line in lines[:-1]} == SERVE_FILES | {file}
    assert machine.files() == SERVE_FILES | {file, RECORD}
    assert lines[-1] == "next: systemctl enable --now xenbusd.service"
    assert machine.calls() == ["systemctl daemon-reload", "systemctl is-active xenbusd.service"]
    assert os.access(machine.root / "etc/xen/scripts/block-xenbusd", os.X_OK)


def test_install_of_the_agent(machine: FolderMachine) -> None:
    """A guest has neither hotplug scripts nor Linux's backends, and needs no xen-utils-common."""
    (machine.root / "etc/xen/scripts").rmdir()
    lines = machine.install("--agent")
    assert machine.files() == AGENT_FILES | {RECORD}
    assert lines[-1] == "next: systemctl enable --now xenbus-agent.service"


def test_install_again(machine: FolderMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second time needs no mode and changes nothing; a new version asks for a restart of a running daemon."""
    machine.install("--mode", "exclusive")
    machine.program("systemctl", "exit 0")  # it runs now
    assert machine.install() == [f"unchanged {path}" for path in install_order("exclusive")]
    new = machine.root / "new/systemd"
    shutil.copytree(shipped_dir("systemd"), new)
    (new / "xenbusd.service").write_text("[Unit]\n")
    monkeypatch.setattr(plan, "shipped_dir", lambda name: str(new) if name == "systemd" else shipped_dir(name))
    lines = machine.install()
    assert "updated /etc/systemd/system/xenbusd.service" in lines
    assert lines[-1] == "next: systemctl restart xenbusd.service    (devices stay connected, and wait for it)"


def install_order(mode: str) -> list[str]:
    """The files of the backends in the order in which they are reported."""
    return [*plan.FILES["serve"], plan.MODES[mode][0], "/etc/xen/scripts/block-xenbusd"]


def test_change_of_mode_under_a_running_daemon(machine: FolderMachine) -> None:
    """A daemon that runs in the old mode is restarted at once: it must not run with the new mode's files."""
    machine.install("--mode", "exclusive")
    machine.program("systemctl", "exit 0")
    machine.calls()
    assert machine.install("--mode", "arbiter")[-1] == "restarted xenbusd.service"
    assert machine.calls()[-1] == "systemctl restart xenbusd.service"


def test_enable_and_now(machine: FolderMachine) -> None:
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


def test_a_service_that_does_not_start(machine: FolderMachine) -> None:
    """The error quotes systemctl, and says where to read more."""
    machine.program(
        "systemctl", '[ "$1" != is-active ] || exit 3; [ "$2" != start ] || { echo "Job failed." >&2; exit 1; }'
    )
    lines = machine.install("--mode", "arbiter", "--now", status=1)
    assert lines[-1].endswith(
        "systemctl start xenbusd.service: Job failed.; journalctl -u xenbusd.service may say more"
    )


def test_without_systemd_as_init(machine: FolderMachine) -> None:
    """In a chroot the files are installed without systemctl; --now is refused."""
    (machine.root / "run/systemd/system").rmdir()
    assert "systemd does not run here" in machine.install("--mode", "arbiter", "--now", status=2)[0]
    machine.install("--mode", "arbiter", "--enable")
    assert machine.calls() == ["systemctl enable xenbusd.service"]


def test_uninstall(machine: FolderMachine) -> None:
    """The service is stopped and disabled, the files are removed, systemd reloads; a second time does nothing."""
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


def test_uninstall_keeps_what_is_changed(machine: FolderMachine) -> None:
    """The administrator's configuration stays, and is named."""
    machine.install("--mode", "arbiter")
    (machine.root / "etc/xenbusd.toml").write_text('[daemon]\nclasses = ["vbd"]\n')
    assert "kept /etc/xenbusd.toml: it has been changed" in machine.xenbusd("uninstall")
    assert machine.files() == {"/etc/xenbusd.toml"}


def test_uninstall_of_both_roles(machine: FolderMachine) -> None:
    """A driver domain may have backends for others and an agent for itself; both go."""
    machine.install("--mode", "arbiter")
    machine.install("--agent")
    machine.xenbusd("uninstall")
    assert machine.files() == set()


def test_uninstall_dry_run(machine: FolderMachine) -> None:
    """It says which files would be removed, and stops nothing."""
    machine.install("--mode", "arbiter")
    machine.calls()
    assert f"would have removed {ARBITER}" in machine.xenbusd("uninstall", "--dry-run")
    assert machine.files() == SERVE_FILES | {ARBITER, RECORD}
    assert machine.calls() == []
