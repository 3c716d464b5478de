"""The architecture's rules that a machine can check: sizes, names, who imports what, docstrings, portable files."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = sorted(path for top in ("xenbusd", "drivers") for path in (ROOT / top).rglob("*.py"))
LIBRARY = [path for path in OURS if path.is_relative_to(ROOT / "xenbusd")]
DRIVERS = [path for path in OURS if path.is_relative_to(ROOT / "drivers")]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
UNIT_TESTS = sorted((ROOT / "tests" / "unit").rglob("test_*.py"))
MACHINE_TESTS = {"bus", "cli", "host", "store", "vbd", "vtpm"}
"""Folders of tests/machine, by subject."""

LINES_MAX = 400

NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "shared_code", "lib", "stuff"}

IMPURE = {
    *("asyncio", "ctypes", "fcntl", "logging", "mmap", "os", "pathlib", "random", "select", "selectors", "signal"),
    *("socket", "structlog", "subprocess", "tempfile", "threading", "time"),
    *("xenbusd.host.real", "xenbusd.log", "xenbusd.process", "xenbusd.store.client"),
}
"""Modules, and with them all that is below them, which no pure module imports."""


def short(path: Path) -> str:
    """A path as a test's name."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    """A module, parsed."""
    return ast.parse(path.read_text(), str(path))


PURE = [path for path in OURS if re.search(r"\bPure\b", ast.get_docstring(tree(path)) or "")]
"""The modules that say so in their docstring."""


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of it, with relative imports made absolute."""
    package = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "drivers"][:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_there_is_something_to_check() -> None:
    """The lists that the other tests go through are not empty because a folder was renamed."""
    assert len(LIBRARY) > 5
    assert len(UNIT_TESTS) > 3
    wire_formats = {short(path) for path in OURS if path.name in {"wire.py", "protocol.py", "layout.py"}}
    assert {"xenbusd/store/session.py", "xenbusd/bus/state.py", *wire_formats} <= {short(path) for path in PURE}


@pytest.mark.parametrize("path", [*OURS, *TESTS], ids=short)
def test_no_module_is_too_long(path: Path) -> None:
    """Rule 11: no module, and no file of tests, has over 400 lines."""
    assert len(path.read_text().splitlines()) <= LINES_MAX, "split it: one module, one noun"


@pytest.mark.parametrize("path", OURS, ids=short)
def test_every_module_is_named_after_a_noun(path: Path) -> None:
    """Rule 11: no module or package is called utils, helpers, common or misc."""
    words = {word for part in path.relative_to(ROOT).with_suffix("").parts for word in part.split("_")}
    assert not words & NAMES_THAT_SAY_NOTHING


@pytest.mark.parametrize("path", PURE, ids=short)
def test_modules_that_say_pure_do_no_io(path: Path) -> None:
    """Rule 7: wire formats, index arithmetic, tables and node values touch neither the system nor the log."""
    assert not [name for name in imported(path) if any(f"{name}.".startswith(f"{module}.") for module in IMPURE)]
    calls = {
        node.func.id for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize("path", DRIVERS, ids=short)
def test_a_driver_imports_the_api_only(path: Path) -> None:
    """Rule 9: of xenbusd a driver imports xenbusd.api; of other drivers nothing."""
    own = path.relative_to(ROOT / "drivers").parts[0]
    for name in imported(path):
        top = name.partition(".")[0]
        if top == "xenbusd":
            assert name == "xenbusd.api" or name.startswith("xenbusd.api."), (
                f"{name}: a third party's driver cannot have it"
            )
        elif top.startswith("xenbusd_"):
            assert top == own, f"{name} is another driver's"


@pytest.mark.parametrize("path", OURS, ids=short)
def test_the_library_imports_no_driver(path: Path) -> None:
    """Rule 9: drivers are found by their entry points, never imported by name."""
    if path in DRIVERS:
        return
    assert not [name for name in imported(path) if name.startswith("xenbusd_")]


@pytest.mark.parametrize("path", UNIT_TESTS, ids=short)
def test_unit_tests_mirror_the_library(path: Path) -> None:
    """tests/unit/<sub>/test_<module>.py is about xenbusd/<sub>/<module>.py; tests/unit/vbd/ about xenbusd_vbd."""
    if path == Path(__file__) or path.stem == "test_readme" or path.parent.name == "house":  # about the whole tree
        return
    *folders, _ = path.relative_to(ROOT / "tests" / "unit").parts
    words = path.stem.removeprefix("test_").split("_")
    homes = [ROOT.joinpath("xenbusd", *folders)]
    if folders:
        homes.append(ROOT.joinpath("drivers", f"xenbusd_{folders[0].removeprefix('xenbusd_')}", *folders[1:]))
    # test_server_quotas.py may be the second file about server.py.
    names = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
    places = [home / end for home in homes for name in names for end in (f"{name}.py", f"{name}/__init__.py")]
    assert any(place.is_file() for place in places), f"there is none of {', '.join(short(place) for place in places)}"


@pytest.mark.parametrize("path", TESTS, ids=short)
def test_no_file_of_tests_is_imported(path: Path) -> None:
    """Tests import no other file of tests: what several of them use lives in tests/doubles."""
    modules = {name for name in imported(path) if name.partition(".")[0] == "tests"}
    assert not [name for name in modules if any(part.startswith("test_") for part in name.split("."))]


def test_machine_tests_are_sorted_by_subject() -> None:
    """tests/machine has one folder for each subject, and no test outside of them."""
    machine = ROOT / "tests" / "machine"
    assert {path.relative_to(machine).parts[0] for path in machine.rglob("test_*.py")} == MACHINE_TESTS


def public(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public functions and classes, and what is public in those classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def overrides(path: Path) -> set[str]:
    """Names of methods in classes with a base: what they do may be told in the base's docstring."""
    classes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef) and node.bases]
    return {
        f"{owner.name}.{item.name}"
        for owner in classes
        for item in owner.body
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("path", LIBRARY, ids=short)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    """Every module, public class and function says what it is for; an overriding method may leave it to its base."""
    assert path.read_text().strip() == "" or ast.get_docstring(tree(path)), "the module has no docstring"
    inherited = overrides(path)
    silent = [name for name, node in public(tree(path).body) if not ast.get_docstring(node) and name not in inherited]
    assert not silent


@pytest.mark.parametrize("path", OURS, ids=short)
def test_there_are_no_stubs_and_reminders(path: Path) -> None:
    """No stub and no reminder is committed as if it were code."""
    text = path.read_text()
    assert "NotImplementedError" not in text
    assert not re.search(r"#\s*(TODO|FIXME|XXX|HACK)\b", text)


def committed() -> list[Path]:
    """Text files of the repository, without what make and the tools leave behind."""
    tops = ("xenbusd", "drivers", "hotplug", "systemd", "tests", "docs", ".ci")
    files = [
        path for top in tops for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    return files + [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a file in a work tree


def test_no_path_of_one_machine() -> None:
    """No file names a home folder or the folder that a developer happened to work in."""
    machine = re.compile(rb"/(?:home|Users)/[a-z]|/(?:root|work)/")
    named = [short(path) for path in committed() if path != Path(__file__) and machine.search(path.read_bytes())]
    assert not named
