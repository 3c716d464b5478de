"""The README shows the real code, commands and paths."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from xenbusd.cli import ctl, run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ECHO = ROOT / "drivers/xenbusd_echo"


@pytest.mark.parametrize("side", ["backend", "frontend"])
def test_the_echo_pair_in_the_readme_is_the_real_one(side: str) -> None:
    """Each Python block of the README stands in the driver's file, to the letter."""
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if f"Echo{side.title()}" in block]
    assert len(blocks) == 1
    assert blocks[0] in (ECHO / f"{side}.py").read_text()


def test_the_template_is_short() -> None:
    """Both ends of the echo, with their protocol, are under 100 lines."""
    lines = [line for path in ECHO.glob("*.py") for line in path.read_text().splitlines()]
    assert 0 < len(lines) < 100


def test_the_entry_points_in_the_readme_are_the_real_ones() -> None:
    """The TOML block says what pyproject.toml says of the echo."""
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    shown = tomllib.loads(block)["project"]["entry-points"]["xenbusd.drivers"]
    real = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["xenbusd.drivers"]
    assert shown == {name: target for name, target in real.items() if name.startswith("echo.")}


def test_every_make_target_in_the_readme_exists() -> None:
    """`make X` in the README is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"demo", "test", "check", "bench", "help"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):.*##", makefile, re.M))


def test_every_command_in_the_readme_exists() -> None:
    """`xenbusd X` and `xenbusctl X` in the README are commands, and each explains itself."""
    for name, group in (("xenbusd", run.main), ("xenbusctl", ctl.main)):
        shown = set(re.findall(rf"bin/{name} ([a-z]+)", README))
        assert shown
        for command in sorted(shown):
            result = CliRunner().invoke(group, [command, "--help"])
            assert result.exit_code == 0, f"{name} {command}: {result.output}"


def test_every_path_in_the_readme_exists() -> None:
    """Links and the table of folders lead somewhere."""
    paths = [*re.findall(r"\]\(([a-z][^)#]*)\)", README), *re.findall(r"^\| `([a-z_]+/[a-z_./]*)`", README, re.M)]
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []
