"""Which tests share a boot of the host. Pure.

A boot runs its tests one after the other and keeps little more than one processor busy, so two boots run side by side.
Each has a quarter of the tests for the default store, and the next boot begins when one of them ends: files take very
different times, and quarters even that out. Tests that need the other store have a boot of their own. The tests of one
file stay together, because they share a daemon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Planned(NamedTuple):
    """One boot, before it begins."""

    store: str
    """The store's daemon."""
    items: tuple[str, ...]
    """Ids of its tests, in their order."""


def plan(items: Sequence[tuple[str, str]], at_once: int) -> list[Planned]:
    """Divide tests into boots, in the order in which these begin.

    Args:
        items: id and store of each test, in their order.
        at_once: boots that run side by side.

    Returns:
        Boots that together have every test once. Those of the most frequent store are divided: into one boot if boots
        do not run side by side, otherwise into up to two for each that does.
    """
    stores: dict[str, list[str]] = {}
    for item, store in items:
        stores.setdefault(store, []).append(item)
    boots: list[Planned] = []
    for store, ids in sorted(stores.items(), key=lambda pair: -len(pair[1])):
        parts = 2 * at_once if at_once > 1 and not boots else 1
        boots += [Planned(store, part) for part in _split(ids, parts) if part]
    return boots


def _split(ids: Sequence[str], parts: int) -> list[tuple[str, ...]]:
    """Cut a list into so many parts of about one size, between files only; some may be empty."""
    cut: list[list[str]] = [[] for _ in range(parts)]
    files: dict[str, list[str]] = {}
    for item in ids:
        files.setdefault(item.partition("::")[0], []).append(item)
    before = 0
    for tests in files.values():
        middle = before + len(tests) / 2
        cut[min(int(middle * parts / len(ids)), parts - 1)] += tests
        before += len(tests)
    return [tuple(part) for part in cut]
