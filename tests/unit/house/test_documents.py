"""The documents agree with the code, with each other, and with the Makefile (D56, D57)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "drivers").glob("*/README.md"),
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    ]
)


def name(path: Path) -> str:
    """A document as a test's name."""
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each link within the repository, with the heading that it names."""
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), f"{target}#{anchor}"


def test_the_newest_version_is_the_package_s() -> None:
    """CHANGELOG's first section and pyproject.toml name the same version, and each section has a date."""
    sections = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    released = [(version, rest) for version, rest in sections if version != "Unreleased"]
    assert released[0][0] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert [version for version, rest in released if not re.fullmatch(r" - 20\d\d-\d\d-\d\d", rest)] == []


def test_readme_and_make_help_say_the_same() -> None:
    """README's table of commands has every target of the Makefile, in the words of `make help`."""
    targets = re.findall(r"^([a-z-]+):.*## (.*)$", (ROOT / "Makefile").read_text(), re.M)
    shown = re.findall(r"^\| `make ([a-z-]+)` \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    assert shown == targets


def test_every_document_is_named_in_the_readme() -> None:
    """README links to every document in docs/."""
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in readme] == []


def paths(text: str) -> set[str]:
    """Every path of ours in a document, in the type of code. Within xenbusd/ and a driver's package it may be short."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    found = re.findall(r"`((?:[a-z_]\w*/)+(?:\w+\.(?:py|md|sh|toml))?|\w+\.py)`", text)
    return {path for path in found if not path.startswith(("xen/", "tools/", "light/", "io/", "xenbus/", "hw/"))}


def is_hidden(path: Path) -> bool:
    """Whether a path is in a folder of tools, such as .venv."""
    return any(part.startswith(".") for part in path.relative_to(ROOT).parts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_path_exists(document: Path) -> None:
    """Modules and folders that a document names are there: from the root, from xenbusd/, or from a driver's package."""
    homes = [ROOT, ROOT / "tests", ROOT / "xenbusd", ROOT / "drivers", *sorted((ROOT / "drivers").glob("xenbusd_*"))]
    below = {path.name for path in document.parent.rglob("*.py") if not is_hidden(path)}
    named = paths(document.read_text()) - below
    assert {path for path in named if not any((home / path).exists() for home in homes)} == set()


def contract(container: str) -> list[list[str]]:
    """The layers of a package that pyproject.toml has import-linter check, from the top down."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (found,) = (item for item in tools["importlinter"]["contracts"] if item.get("containers") == [container])
    return [re.findall(r"\w+", layer) for layer in found["layers"]]


def section_on_layers() -> str:
    """The part of docs/architecture.md that lists them."""
    return (ROOT / "docs/architecture.md").read_text().partition("## Layers")[2].partition("\n## ")[0]


def test_the_layers_are_those_of_the_import_contract() -> None:
    """docs/architecture.md lists xenbusd's layers as the contract does."""
    layers = contract("xenbusd")
    layers[0].remove("__main__")
    shown = re.findall(r"^\| (`.*?`) \| ", section_on_layers(), re.M)
    assert [re.findall(r"`(\w+)(?:/|\.py)`", row) for row in shown] == layers


def test_the_layers_of_xenbusd_vbd_are_those_of_the_import_contract() -> None:
    """Likewise those of the disk's driver, whose names stand before two spaces."""
    shown = section_on_layers().partition("```text\n")[2].partition("```")[0].splitlines()
    assert [re.findall(r"(\w+)(?:/|\.py)", row.partition("  ")[0]) for row in shown] == contract("xenbusd_vbd")


def test_no_document_outside_is_cited() -> None:
    """Every document that code or tests cite is in the repository."""
    outside = re.compile(r"field survey|reliability reference")
    files = (
        path
        for top in ("xenbusd", "drivers", "hotplug", "systemd", "tests", "docs")
        for path in (ROOT / top).rglob("*")
    )
    texts = {
        name(path): path.read_text(errors="replace") for path in files if path.is_file() and path != Path(__file__)
    }
    assert [path for path, text in texts.items() if "__pycache__" not in path and outside.search(text)] == []
