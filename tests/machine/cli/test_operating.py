"""docs/operating.md: its commands exist, and its files and formats are the real ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from xenbusd.cli import ctl, run
from xenbusd.config import SCRIPTS_DIR, Config
from xenbusd.install import plan
from xenbusd.shipped import shipped_dir
from xenbusd_vbd.image import params

TEXT = (Path(__file__).parents[3] / "docs/operating.md").read_text()
GROUPS = {"xenbusd": run.main, "xenbusctl": ctl.main}
COMMANDS = re.findall(r"^# (?:/opt/xenbusd/bin/)?((?:xenbusd|xenbusctl) .*)$", TEXT, re.M)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line: str) -> None:
    """Each command with its options and arguments is parsed by the real program, as far as it goes without a host."""
    program, name, *words = shlex.split(line)
    group = click.Context(GROUPS[program], obj=ctl.Context(Config(), False))
    command = GROUPS[program].get_command(group, name)
    assert command is not None, f"{program} has no command {name}"
    command.make_context(name, words, parent=group)


def test_there_are_commands() -> None:
    """The list above is not empty because the document's form has changed."""
    assert {line.split()[1] for line in COMMANDS} >= {"install", "uninstall", "attach", "detach", "list", "timeline"}


def test_the_table_of_installed_files() -> None:
    """It names every file of dom0's side."""
    scripts = {f"{SCRIPTS_DIR}/{path.name}" for path in Path(shipped_dir("hotplug")).iterdir()}
    real = {*plan.FILES["serve"], *scripts, *(path for path, _ in plan.MODES.values())}
    rows = re.findall(r"^\| (`/etc.*?) \|", TEXT, re.M)
    assert {path for row in rows for path in re.findall(r"`([^`]+)`", row)} == real


def test_the_formats() -> None:
    """Each format that it names is served."""
    (sentence,) = re.findall(r"unless its format is stated: (.*?)\. A format is never", TEXT, re.S)
    named = {name.partition(":")[0] for name in re.findall(r"`([^`]+)`", sentence)}
    assert {"qcow2", "nbd", "https"} <= named <= set(params.formats())


def test_disk_lines() -> None:
    """Each has our script and ends in its target, because xl takes all that comes behind target= for the target."""
    lines = re.findall(r"^    '(.*)',$", TEXT, re.M)
    assert len(lines) > 5
    for line in lines:
        assert re.fullmatch(
            r"script=block-xenbusd,vdev=xvd[a-z],access=(rw|ro),([a-z-]+(=[a-z]+)?,)*target=[^,]+", line
        )
