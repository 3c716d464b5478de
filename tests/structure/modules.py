"""Reads the modules of a source tree and their imports, by parsing them. Nothing of the tree is imported or run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TOPS = ("xenbusd", "drivers")
"""Folders whose modules are read: a package, and a folder of packages."""

NOT_OURS = "driver_template"
"""Files below are copied by `xenbusctl new-driver`, not imported."""


@dataclass(frozen=True)
class Module:
    """One module, and the modules of the same tree that it imports."""

    name: str
    """Dotted, as it is imported; a package goes by its own name."""

    lines: int
    imports: frozenset[str]
    """Names of modules; those under `if TYPE_CHECKING:` as well."""

    @property
    def floor(self) -> str:
        """The package at the top: xenbusd, or a driver."""
        return self.name.partition(".")[0]

    @property
    def room(self) -> str:
        """The module's place on its floor: the module itself, or the package that it lies in."""
        return ".".join(self.name.split(".")[:2])


def read(root: Path) -> dict[str, Module]:
    """Every module below `root`/xenbusd and `root`/drivers, by its name."""
    paths = dict(_paths(root))
    modules = {}
    for name, path in paths.items():
        text = path.read_text()
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        imports = {target for target in _imported(ast.parse(text), package, paths) if target != name}
        modules[name] = Module(name, len(text.splitlines()), frozenset(imports))
    return modules


def lines_of_tests(root: Path) -> list[int]:
    """The lines of each Python file below `root`/tests."""
    return [len(path.read_text().splitlines()) for path in sorted((root / "tests").rglob("*.py"))]


def circles(imports: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of names that lead to each other: strongly connected components of more than one (Tarjan)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for target in imports.get(name, ()):
            if target not in number:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], number[target])
        if lowest[name] == number[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in imports:
        if name not in number:
            visit(name)
    return sorted(found)


def _paths(root: Path) -> Iterator[tuple[str, Path]]:
    for top in TOPS:
        base = root if top == "xenbusd" else root / top
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            if NOT_OURS not in parts:
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imported(tree: ast.Module, package: str, known: Mapping[str, object]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{module}.{alias.name}"
                if target in known:
                    yield target
                elif module in known:
                    yield module
