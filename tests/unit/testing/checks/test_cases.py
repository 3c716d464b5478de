"""xenbusd.testing.checks.cases: which checks are cases, their names, and the report of one that fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xenbusd.bus.state import Side
from xenbusd.testing.checks import Case, cases, check_pair
from xenbusd.testing.checks.cases import both_sides, each

one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])


class First:
    """Checks of a base."""

    ran: list[tuple[object, ...]]

    async def test_alone(self) -> None:
        """It is
        so."""
        self.ran.append(("alone",))


class Second(First):
    """Its own, and those of its base."""

    @both_sides
    @each("phase", ["handshake", "detach"])
    async def test_for_each(self, side: Side, phase: str) -> None:
        """Each time."""
        self.ran.append((side, phase))
        assert (side, phase) != (Side.FRONTEND, "detach"), "no luck"

    async def helper(self) -> None:
        """No check: its name says nothing of a test."""


NAMES = [
    "alone",
    "for_each[handshake-backend]",
    "for_each[handshake-frontend]",
    "for_each[detach-backend]",
    "for_each[detach-frontend]",
]


def test_each_combination_is_a_case() -> None:
    """Named as pytest names it; those of the base come first; what it is about stands on one line."""
    found = list(cases(Second))
    assert [case.name for case in found] == NAMES
    assert found[0].about == "It is so."


@one_loop
async def test_a_case_runs_on_its_own() -> None:
    """With its values, on an instance of its own."""
    Second.ran = []
    for case in cases(Second):
        if case.name == "for_each[detach-backend]":
            await case.run()
    assert Second.ran == [(Side.BACKEND, "detach")]


@one_loop
async def test_all_cases_run_and_failures_are_gathered() -> None:
    """One that fails does not keep the others from running; each failure names its case."""
    Second.ran = []
    reported: list[tuple[str, bool]] = []

    def report(case: Case, error: Exception | None) -> None:
        reported.append((case.name, error is None))

    with pytest.raises(ExceptionGroup, match="1 of 5 checks of Second failed") as caught:
        await check_pair(Second, report)
    assert reported == [(name, name != NAMES[-1]) for name in NAMES]
    (failure,) = caught.value.exceptions
    assert "no luck" in str(failure)
    assert failure.__notes__[0] == "for_each[detach-frontend]: Each time."


@one_loop
async def test_a_pair_that_conforms_raises_nothing() -> None:
    """And every check was run."""
    First.ran = []
    await check_pair(First)
    assert First.ran == [("alone",)]


def test_python_without_assertions_is_refused() -> None:
    """With -O every check would pass, whatever the pair does."""
    program = "import asyncio; from xenbusd.testing.checks import *; asyncio.run(check_pair(object))"
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True)
    assert "UsageError: the checks are assertions: run Python without -O" in done.stderr
