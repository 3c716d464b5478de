"""xenbusd.api: what drivers import."""

from __future__ import annotations

import builtins
import inspect
import re

import pytest

from xenbusd import api


def raised(document: str | None) -> set[str]:
    """The errors that a docstring's section "Raises" names."""
    section = re.search(r"^Raises:\n((?: {4}.*\n?)+)", inspect.cleandoc(document or ""), re.M)
    heads = re.findall(r"^ {4}(\w+(?:, \w+)*)(?::|$)", section[1], re.M) if section else []
    return {name for head in heads for name in head.split(", ")}


def test_the_list_is_of_what_is_there() -> None:
    """Each name once, and each to be had."""
    assert len(set(api.__all__)) == len(api.__all__)
    assert all(hasattr(api, name) for name in api.__all__)


@pytest.mark.parametrize("name", api.__all__)
def test_errors_that_are_promised_can_be_caught(name: str) -> None:
    """A driver imports nothing but xenbusd.api, so each error that a docstring names is there, or is Python's."""
    exported = getattr(api, name)
    promised = raised(getattr(exported, "__doc__", None))
    if inspect.isclass(exported):
        for member, value in inspect.getmembers(exported):
            if not member.startswith("_"):
                promised |= raised(getattr(value, "__doc__", None))
    missing = {error for error in promised if not hasattr(builtins, error)} - set(api.__all__)
    assert not missing


def test_the_section_is_read() -> None:
    """Several on a line, each with its sentence, and one that goes on."""
    text = """Do it.

    Raises:
        GrantError, RingError: no pages
            to be had.
        UsageError
    Blocks: no.
    """
    assert raised(text) == {"GrantError", "RingError", "UsageError"}
    assert raised(None) == set()
