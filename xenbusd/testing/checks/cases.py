"""Checks and their cases, without any test framework.

A check is a coroutine method whose name begins with `test_` and which raises if something is wrong. A check that takes
an argument is decorated by `each` with the argument's values; each combination of values is a case of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Any, TypeVar

from xenbusd.bus.state import Side
from xenbusd.errors import UsageError

Check = TypeVar("Check", bound=Callable[..., Awaitable[None]])

PREFIX = "test_"


def each(argument: str, values: Iterable[object]) -> Callable[[Check], Check]:
    """Run a check once for each value of one of its arguments."""

    def mark(check: Check) -> Check:
        check.__dict__["variants"] = {**variants(check), argument: tuple(values)}
        return check

    return mark


both_sides = each("side", Side)
"""Run a check once with the fault in the backend, and once with it in the frontend."""


def variants(check: Callable[..., Awaitable[None]]) -> Mapping[str, tuple[object, ...]]:
    """Each argument of a check, and its values."""
    found: Mapping[str, tuple[object, ...]] = check.__dict__.get("variants", {})
    return found


def checks(pair: type[object]) -> Iterator[tuple[str, Callable[..., Awaitable[None]]]]:
    """The checks of a class, by name, those of its bases first, in the order in which they are written."""
    names = {name: None for kind in reversed(pair.__mro__) for name in vars(kind) if name.startswith(PREFIX)}
    return ((name, getattr(pair, name)) for name in names)


@dataclass(frozen=True)
class Case:
    """One check with one combination of values."""

    name: str
    """Such as "process_dies_at_each_step[handshake-backend]"."""
    about: str
    """The behaviour that is checked: the check's docstring."""
    run: Callable[[], Awaitable[None]]
    """Runs the case; raises AssertionError, or any other exception, if it fails. Needs an event loop with no other case
    on it."""


def cases(pair: type[Any]) -> Iterator[Case]:
    """Every case of a class of checks. Each makes an instance of its own when it is run."""
    for name, check in checks(pair):
        arguments = variants(check)
        for values in product(*arguments.values()):
            shown = "-".join(str(value.value if isinstance(value, Enum) else value) for value in values)
            yield Case(
                name=name.removeprefix(PREFIX) + (f"[{shown}]" if values else ""),
                about=" ".join((check.__doc__ or "").split()),
                run=_runner(pair, name, dict(zip(arguments, values, strict=True))),
            )


def _runner(pair: type[Any], name: str, arguments: Mapping[str, object]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await getattr(pair(), name)(**arguments)

    return run


async def check_pair(pair: type[Any], report: Callable[[Case, Exception | None], None] | None = None) -> None:
    """Run every case of a class of checks, one after another; it takes minutes.

    Args:
        pair: derived from `PairChecks`.
        report: called after each case, with the exception that it raised, or None.

    Raises:
        ExceptionGroup: some cases failed; each exception has the case's name as a note.
        UsageError: Python runs with -O, which leaves assertions out.
    """
    if not __debug__:
        raise UsageError("the checks are assertions: run Python without -O")
    failures: list[Exception] = []
    number = 0
    for number, case in enumerate(cases(pair), 1):  # noqa: B007  # the count goes into the message
        error: Exception | None = None
        try:
            await case.run()
        except Exception as raised:
            raised.add_note(f"{case.name}: {case.about}")
            failures.append(error := raised)
        if report is not None:
            report(case, error)
        await asyncio.sleep(0)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {number} checks of {pair.__name__} failed", failures)
