"""xenbusd.events: the code writes the events that are listed, and no others; the documents list the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from xenbusd.log import LEVELS

ROOT = Path(__file__).parents[2]
PACKAGES = {path.name: path for path in [ROOT / "xenbusd", *sorted((ROOT / "drivers").glob("xenbusd_*"))]}
NAME = re.compile(r"[a-z_]+\.[a-z_]+")


def listed(package: str) -> dict[str, str]:
    """The events of a package, with their sentences."""
    if not (PACKAGES[package] / "events.py").exists():
        return {}
    events: dict[str, str] = import_module(f"{package}.events").EVENTS
    return events


def is_logging(call: ast.Call) -> bool:
    """Whether a call looks like `log.info(...)`, `self._log.warning(...)`, or calls such a method by another name."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id in {"log", "method"}
    if not isinstance(function, ast.Attribute):
        return False
    owner = function.value.attr if isinstance(function.value, ast.Attribute) else getattr(function.value, "id", "")
    return function.attr == "_log" or (function.attr in LEVELS and owner in {"log", "_log"})


def written(package: str) -> Iterator[tuple[str, ast.expr]]:
    """Every event that a package's code writes, with the file it is in."""
    for path in sorted(PACKAGES[package].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and is_logging(node):
                yield path.relative_to(ROOT).as_posix(), node.args[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_an_event_s_name_stands_where_it_is_written(package: str) -> None:
    """As a literal "<subject>.<what happened>", for people who search for it, and for this test."""
    for path, event in written(package):
        assert isinstance(event, ast.Constant), f"{path}:{event.lineno}"
        assert NAME.fullmatch(str(event.value)), f"{path}:{event.lineno}"


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_written_is_listed_and_what_is_listed_is_written(package: str) -> None:
    """A driver may also write events of the core, such as otherend.late."""
    names = {event.value for _, event in written(package) if isinstance(event, ast.Constant)}
    own = listed(package)
    assert names - own.keys() <= listed("xenbusd").keys(), "add it to events.py"
    assert own.keys() - names == set(), "nothing writes it: take it out of events.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_event_has_one_sentence(package: str) -> None:
    """In alphabetical order, so that each is found."""
    events = listed(package)
    assert list(events) == sorted(events)
    assert all(re.fullmatch(r"[A-Z][^|\n]*\.", sentence) for sentence in events.values())


def test_the_core_is_found_to_write_events() -> None:
    """The search does not come back empty."""
    names = {getattr(event, "value", None) for _, event in written("xenbusd")}
    assert {"device.connected", "library.logged", "daemon.started", "arbiter.began"} <= names


def test_the_documents_list_the_same() -> None:
    """docs/events.md has a row for each event, in the lists' words."""
    rows = [f"| `{name}` | {text} |" for package in PACKAGES for name, text in listed(package).items()]
    document = (ROOT / "docs" / "events.md").read_text().splitlines()
    assert [line for line in document if line.startswith("| `")] == rows
