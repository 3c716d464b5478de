"""Naming grant references."""

from __future__ import annotations

from xenbusd.host.grefs import in_words


def test_few_are_all_named() -> None:
    """A message about some references names each."""
    assert in_words([8, 9, 10]) == "8 9 10"


def test_many_are_counted() -> None:
    """A message about thousands stays a message."""
    assert in_words(range(1000)).endswith(" 14 15 ... (1000 in all)")
