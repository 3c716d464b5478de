"""xenbusd.install.this_machine: the requirements of a machine, and the user who may install."""

from __future__ import annotations

import os

import pytest

from tests.doubles.folder_machine import EXCLUSIVE, SERVE_FILES, FolderMachine


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("etc/xen/scripts", "there is no /etc/xen/scripts: xen-utils-common is not installed"),
        ("etc/systemd/system", "there is no /etc/systemd/system: systemd is not installed"),
    ],
)
def test_a_folder_is_missing(machine: FolderMachine, folder: str, sentence: str) -> None:
    """The sentence says which package brings the folder."""
    (machine.root / folder).rmdir()
    (line,) = machine.install("--mode", "exclusive", status=2)
    assert sentence in line
    assert machine.files() == set()


def test_not_root(machine: FolderMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user may do no more than a --dry-run."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (line,) = machine.install("--mode", "exclusive", status=2)
    assert "run `xenbusd install` as root" in line
    (line,) = machine.xenbusd("uninstall", status=2)
    assert "run `xenbusd uninstall` as root" in line
    lines = machine.install("--mode", "exclusive", "--dry-run")
    assert {line.removeprefix("would have installed ") for line in lines} == SERVE_FILES | {EXCLUSIVE}
    assert (machine.files(), machine.calls()) == (set(), [])


def test_the_agent_is_not_for_dom0(machine: FolderMachine) -> None:
    """In dom0 the agent's unit would never start, so it is refused; in a driver domain it is not."""
    (machine.root / "proc/xen/capabilities").write_text("control_d\n")
    assert "this is dom0, and --agent is for guests" in machine.install("--agent", status=2)[0]
    (machine.root / "proc/xen/capabilities").write_text("")
    machine.install("--agent")


def test_not_under_xen(machine: FolderMachine) -> None:
    """If the machine has not been booted under Xen yet, a note says so."""
    (machine.root / "proc/xen").rmdir()
    assert "does not run under Xen now" in machine.install("--mode", "arbiter")[-1]
