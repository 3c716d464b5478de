"""docs/rules.md and docs/decisions.md: each number that is cited has its row, and each rule that is kept its test."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CITING = (
    *("xenbusd", "drivers", "hotplug", "systemd", "tests", "docs"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml"),
)
CODE = ("xenbusd", "drivers", "hotplug")
NUMBER = re.compile(r"\b[TVD][1-9][0-9]{0,2}\b")

NOT_BUILT = "not built yet"
NOTHING_TO_KEEP = "–"


@dataclass(frozen=True)
class Rule:
    """One row of docs/rules.md."""

    number: str
    text: str
    source: str
    kept_in: tuple[str, ...]
    tests: str

    @property
    def names(self) -> list[str]:
        """Names of tests, or patterns of names; none for a rule about what is not built."""
        return re.findall(r"`([^`]+)`", self.tests)


def rows() -> Iterator[Rule]:
    """Every rule that docs/rules.md has a row for."""
    for line in (ROOT / "docs/rules.md").read_text().splitlines():
        if re.match(r"\| [TV][0-9]+ \|", line):
            number, text, source, kept_in, tests = (cell.strip() for cell in line.strip("|").split("|"))
            yield Rule(number, text, source, tuple(re.findall(r"`([^`]+)`", kept_in)), tests)


RULES = list(rows())
DECISIONS = re.findall(r"^### (D[1-9][0-9]*)\b", (ROOT / "docs/decisions.md").read_text(), re.M)


def files(top: str) -> list[Path]:
    """A file, or all files of a folder, but for this one: its numbers are examples."""
    found = sorted((ROOT / top).rglob("*")) if (ROOT / top).is_dir() else [ROOT / top]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts and path != Path(__file__)]


@functools.cache
def named_tests() -> dict[str, set[str]]:
    """Every test function of the repository, and the numbers that its name, its docstring or its module's cites."""
    found: dict[str, set[str]] = {}
    for path in files("tests"):
        if path.suffix != ".py":
            continue
        module = ast.parse(path.read_text(), str(path))
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                cited = set(NUMBER.findall(f"{ast.get_docstring(node)} {ast.get_docstring(module)}"))
                cited |= {f"T{int(number)}" for number in re.findall(r"test_t(\d+)_", node.name)}
                found.setdefault(node.name, set()).update(cited)
    return found


def citations(tops: tuple[str, ...]) -> dict[str, str]:
    """Every number cited in these folders and files, and one place that cites it."""
    found: dict[str, str] = {}
    for path in (path for top in tops for path in files(top)):
        text = path.read_text(errors="replace")
        if path.suffix == ".toml":  # comments alone: ruff has a rule T10, too
            text = "\n".join(re.findall(r"#.*", text))
        for number in NUMBER.findall(text):
            found.setdefault(number, path.relative_to(ROOT).as_posix())
    return found


def test_rules_are_numbered_without_gaps() -> None:
    """T1 to T72 and V1 to V45, each once and in order; decisions are D1, D2 and so on, in any order."""
    numbers = [rule.number for rule in RULES]
    assert numbers == [f"T{n}" for n in range(1, 73)] + [f"V{n}" for n in range(1, 46)]
    assert sorted(DECISIONS, key=lambda number: int(number[1:])) == [f"D{n + 1}" for n in range(len(DECISIONS))]


def test_each_number_that_is_cited_has_a_row() -> None:
    """Nobody has to look for a rule outside the repository."""
    known = {rule.number for rule in RULES} | set(DECISIONS)
    assert {number: where for number, where in citations(CITING).items() if number not in known} == {}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.number)
def test_a_row_is_complete(rule: Rule) -> None:
    """A rule says what it is and where that can be read; a rule that is kept says in which module."""
    assert rule.text
    assert rule.source
    assert bool(rule.kept_in) == bool(rule.names)
    assert rule.names or rule.tests in (NOT_BUILT, NOTHING_TO_KEEP)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.kept_in], ids=lambda rule: rule.number)
def test_a_rule_is_cited_where_it_is_kept(rule: Rule) -> None:
    """Each module that the row names exists and cites the rule; of a package one module does."""
    for module in rule.kept_in:
        homes = [top for top in ("", "drivers/") if (ROOT / top / module).exists()]
        assert homes, f"docs/rules.md names {module}, and there is no such module"
        assert rule.number in citations((homes[0] + module,)), f"{module} does not cite {rule.number}"


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.names], ids=lambda rule: rule.number)
def test_what_is_built_has_tests(rule: Rule) -> None:
    """Each test named in the row exists and cites the rule. After a test was renamed, change the row with it."""
    for name in rule.names:
        matching = [cited for test, cited in named_tests().items() if fnmatchcase(test, name)]
        assert matching, f"docs/rules.md names {name}, and there is no such test"
        assert any(rule.number in cited for cited in matching), f"{name} does not cite {rule.number}"


def test_each_decision_has_a_date_and_a_reason() -> None:
    """The heading says what was decided; below it stand the day, and why."""
    text = (ROOT / "docs/decisions.md").read_text()
    sections = re.findall(r"^### (D\d+) (.+)\n(.*)", text, re.M)
    assert [number for number, _, _ in sections] == DECISIONS
    assert [number for number, _, why in sections if not re.match(r"\*20\d\d-\d\d-\d\d\.\* \S", why)] == []


def test_each_decision_is_cited_where_it_governs() -> None:
    """A reader of the code finds the reason: each decision is cited in code, in a test, or in pyproject.toml."""
    cited = citations((*CODE, "tests", "pyproject.toml"))
    assert [number for number in DECISIONS if number not in cited] == []


def test_no_code_cites_a_rule_that_asks_nothing_of_it() -> None:
    """A row without tests is about something else on the host; once code cites it, it wants a test."""
    idle = {rule.number for rule in RULES if rule.tests == NOTHING_TO_KEEP}
    assert {number: where for number, where in citations(CODE).items() if number in idle} == {}
