"""xenbusd.install.program: the program that the unit runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.doubles.folder_machine import ARBITER, PROGRAM, FolderMachine, invoke


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("/tmp/venv/bin/xenbusd", "a service cannot have its program at /tmp/venv/"),
        ("bin/xenbusd", "it must be an absolute path"),
        ("/opt/my tools/xenbusd", "cannot stand in a unit"),
        ("/opt/50%/xenbusd", "cannot stand in a unit"),
    ],
)
def test_a_program_that_no_unit_can_run(machine: FolderMachine, program: str, sentence: str) -> None:
    """Refused before anything is done."""
    (line,) = machine.xenbusd("install", "--mode", "exclusive", "--program", program, status=2)
    assert sentence in line
    assert machine.files() == set()


def test_the_unit_runs_the_program_that_installed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it is the xenbusd that runs this, by its path inside the root; any other one has to be named."""
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
