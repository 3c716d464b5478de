"""The keys read from a README's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenbusd.bus.state import Side
from xenbusd.testing.key_table import generic_key, read_keys

DRIVERS = Path(__file__).parents[3] / "drivers"


def test_the_echo_s_table() -> None:
    """A column says whose directory each key is in."""
    assert read_keys((DRIVERS / "xenbusd_echo/README.md").read_text()) == {
        Side.BACKEND: {"feature-upper"},
        Side.FRONTEND: {"request-upper", "ring-ref", "event-channel"},
    }


def test_tables_below_headings() -> None:
    """A line before the table says whose directory it is; other tables are not looked at; a cell may have many keys."""
    text = """
## Keys

Backend's directory. T: toolstack.

| key | by |
|---|---|
| `params`, `mode` | T |

| option | default |
|---|---|
| `speed` | 1 |

**Frontend's directory**

| Key | by |
|:--|---|
| `ring-ref`, or `ring-page-order` with `ring-ref0` ... | F |
"""
    assert read_keys(text) == {
        Side.BACKEND: {"params", "mode"},
        Side.FRONTEND: {"ring-ref", "ring-page-order", "ring-ref0"},
    }


def test_a_table_of_something_else() -> None:
    """A table of options in a section of its own is none of nodes, even if its first column is called key."""
    text = "Backend's directory\n\n| key |\n|---|\n| `a` |\n\n## Options\n\n| key | default |\n|---|---|\n| `b` | 1 |\n"
    assert read_keys(text) == {Side.BACKEND: {"a"}, Side.FRONTEND: set()}


def test_a_directory_that_is_none() -> None:
    """A directory that is neither end's is an error that shows the line."""
    with pytest.raises(ValueError, match="backend or frontend, not 'both'"):
        read_keys("| key | directory |\n|---|---|\n| `a` | both |")


@pytest.mark.parametrize(
    ("key", "generic"),
    [
        ("ring-ref", "ring-ref"),
        ("ring-ref7", "ring-ref0"),
        ("queue-3/ring-ref12", "ring-ref0"),
        ("queue-0/event-channel", "event-channel"),
    ],
)
def test_numbers_do_not_count(key: str, generic: str) -> None:
    """Numbered pages and queues are one key to a reader."""
    assert generic_key(key) == generic
