"""Every rule for which docs/rules.md names tests that begin with its number, `test_t50_*`, has one in this folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

RULES = sorted({int(number) for number in re.findall(r"`test_t(\d+)_\*`", (ROOT / "docs/rules.md").read_text())})
"""Among them T1 to T28: store, probe, hotplug, handshake; and T50 to T58: closing."""

NAME = re.compile(r"test_t(\d+)_[a-z0-9_]+")

Test = ast.FunctionDef | ast.AsyncFunctionDef


def named_after_rules() -> list[tuple[int, Test]]:
    """Every test function of this folder whose name begins with a rule's number, and that number."""
    found: list[tuple[int, Test]] = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(path.read_text(), str(path)).body:
            if isinstance(node, Test) and (match := NAME.fullmatch(node.name)):
                found.append((int(match[1]), node))
    return found


TESTS = named_after_rules()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"T{rule}")
def test_the_rule_has_a_test(rule: int) -> None:
    """The rule has a test whose name begins with its number, and which is never skipped."""
    mine = [test for number, test in TESTS if number == rule]
    marks = {mark for test in mine for mark in map(ast.unparse, test.decorator_list)}
    assert mine, f"write a test called test_t{rule:02}_what_it_says"
    assert not [mark for mark in marks if "skip" in mark or "xfail" in mark]


@pytest.mark.parametrize(("rule", "test"), TESTS, ids=[test.name for _, test in TESTS])
def test_the_test_says_what_the_rule_is(rule: int, test: Test) -> None:
    """A test that is named after a rule begins its docstring with the number, and says the rule in our own words."""
    text = ast.get_docstring(test) or ""
    assert re.match(rf"(T\d+, )?T{rule}\b", text)
    assert len(text.split()) > 6


def test_no_number_is_made_up() -> None:
    """A test is named after a rule that there is."""
    assert {number for number, _ in TESTS} <= set(RULES)
