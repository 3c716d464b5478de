"""The package that `xenbusctl new-driver` writes: its names, what is refused, and how short it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from xenbusd.cli.ctl import main
from xenbusd.cli.new_driver import TAKEN, check_new_class, write_package
from xenbusd.errors import UsageError
from xenbusd.testing.key_table import read_keys


def new_driver(*arguments: str | Path) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["new-driver", *map(str, arguments)])


def test_a_package_is_written(tmp_path: Path) -> None:
    """Each file is written and named; the Python files compile; the metadata parses and names their classes."""
    result = new_driver("two-words", "--into", tmp_path)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "xenbusd-two-words"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "pyproject.toml",
        "README.md",
        "tests/test_two_words.py",
        *(f"xenbusd_two_words/{name}.py" for name in ("__init__", "protocol", "backend", "frontend")),
    }
    assert all(f"wrote {folder / name}" in result.output for name in files)
    for path in folder.rglob("*.py"):
        compile(path.read_text(), path, "exec")
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["xenbusd.drivers"]
    assert points == {
        "two-words.backend": "xenbusd_two_words.backend:TwoWordsBackend",
        "two-words.frontend": "xenbusd_two_words.frontend:TwoWordsFrontend",
    }
    assert "class TwoWordsBackend(Backend" in (folder / "xenbusd_two_words/backend.py").read_text()
    assert all(read_keys((folder / "README.md").read_text()).values())
    assert not any("$" in path.read_text() for path in folder.rglob("*.py"))


def test_it_is_as_short_as_the_echo(tmp_path: Path) -> None:
    """Both ends with their protocol are under 100 lines."""
    folder = tmp_path / "package"
    write_package(check_new_class("short"), folder)
    assert 0 < sum(len(path.read_text().splitlines()) for path in (folder / "xenbusd_short").glob("*.py")) < 100


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Tape", "small letters"),
        ("", "small letters"),
        ("9lives", "begin with a letter"),
        ("tape-", "letters or digits after"),
        ("a--b", "letters or digits after"),
        ("../tape", "small letters"),
        ("vif", "Xen's own tools"),
        ("echo", "there is a driver for echo already"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, name: str, complaint: str) -> None:
    """A name that is invalid or taken is refused with a sentence and status 2; nothing is written."""
    result = new_driver("--into", tmp_path, "--", name)
    assert result.exit_code == 2
    assert complaint in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_what_xen_knows_is_refused(name: str) -> None:
    """Each class that Xen's own tools know is refused, whatever is installed here."""
    with pytest.raises(UsageError):
        check_new_class(name)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """An existing folder stays as it is, even an empty one."""
    (tmp_path / "xenbusd-tape").mkdir()
    result = new_driver("tape", "--into", tmp_path)
    assert result.exit_code == 2
    assert "nothing is overwritten" in result.output
    assert list((tmp_path / "xenbusd-tape").iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """An error of the system is reported in a sentence."""
    (tmp_path / "file").write_text("in the way")
    result = new_driver("tape", "--into", tmp_path / "file")
    assert result.exit_code == 2
    assert "cannot write" in result.output


@pytest.mark.parametrize(("name", "long"), [("elevenchars", False), ("twelve-chars", True)])
def test_a_long_name_gets_a_note(tmp_path: Path, name: str, long: bool) -> None:
    """Linux's sysfs has room for 19 characters: longer names work, with a note."""
    result = new_driver(name, "--into", tmp_path)
    assert result.exit_code == 0
    assert ("for Linux to show a device in /sys" in result.output) is long
