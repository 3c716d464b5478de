"""xenbusd.install.plan: the modes, and the contents of the shipped files."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.doubles.folder_machine import ARBITER, EXCLUSIVE, RECORD, SERVE_FILES, FolderMachine
from xenbusd.config import Config, load
from xenbusd.install import plan
from xenbusd.shipped import shipped_dir


def test_change_of_mode(machine: FolderMachine) -> None:
    """The file of one mode is removed when the other's is installed, both ways."""
    machine.install("--mode", "exclusive")
    assert f"removed {EXCLUSIVE}" in machine.install("--mode", "arbiter")
    assert machine.files() == SERVE_FILES | {ARBITER, RECORD}
    assert f"removed {ARBITER}" in machine.install("--mode", "exclusive")
    assert machine.files() == SERVE_FILES | {EXCLUSIVE, RECORD}


@pytest.mark.parametrize("installed", [True, False])
def test_a_file_that_makes_the_other_mode(machine: FolderMachine, installed: bool) -> None:
    """A file of the other mode that is not ours, or was changed, would undo the mode: nothing is done."""
    if installed:
        machine.install("--mode", "exclusive")
    (machine.root / "etc/modprobe.d").mkdir(exist_ok=True)
    (machine.root / EXCLUSIVE[1:]).write_text("install xen-blkback /bin/false\n")
    files = machine.files()
    (line,) = machine.install("--mode", "arbiter", status=2)
    assert f"{EXCLUSIVE} makes the mode exclusive, and is not as we ship it: move it away" in line
    assert machine.files() == files


def test_a_mode_has_to_be_chosen(machine: FolderMachine) -> None:
    """Without a mode nothing is installed, and the sentence explains both modes."""
    (line,) = machine.install(status=2)
    assert "--mode arbiter: " in line
    assert "--mode exclusive: " in line
    assert machine.files() == set()


@pytest.mark.parametrize("name", ["xenbusd.toml", "xenbus-agent.toml"])
def test_the_shipped_configuration(name: str, tmp_path: Path) -> None:
    """It is valid and sets nothing; each line that is commented out has a key that exists."""
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
    names = {name for of in plan.FILES.values() for name in of.values()} | {name for _, name in plan.MODES.values()}
    assert names == set(os.listdir(shipped_dir("systemd")))
