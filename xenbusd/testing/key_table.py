"""Reads the table of keys in a driver's README, so that a test can compare the driver with it. Pure.

A table of keys is one whose first column is called "key". A column "directory" names the end whose directory the table
describes, or a line before the table, in the same section, that begins with "Backend's directory" or "Frontend's
directory". Each key stands in backquotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from xenbusd.bus.state import Side

_HEADING = re.compile(r"(backend|frontend)'s directory", re.I)
_QUEUE = re.compile(r"queue-\d+/")
_NUMBER = re.compile(r"(?<=[a-z-])\d+$")


def read_keys(readme: str) -> dict[Side, set[str]]:
    """Return the keys of each end's directory, `generic` as in `generic_key`.

    Args:
        readme: Markdown.

    Raises:
        ValueError: a column "directory" says something else; the message has the line.
    """
    keys: dict[Side, set[str]] = {Side.BACKEND: set(), Side.FRONTEND: set()}
    for directory, cell in _rows(readme):
        for key in re.findall(r"`([^`]+)`", cell):
            keys[directory].add(generic_key(key))
    return keys


def generic_key(key: str) -> str:
    """A key without its numbers: a README documents `ring-ref3` and `queue-2/ring-ref3` as `ring-ref0`."""
    return _NUMBER.sub("0", _QUEUE.sub("", key))


def _rows(readme: str) -> Iterator[tuple[Side, str]]:
    """Yield each row of each table of keys: the side whose directory it describes, and the cell with the keys."""
    heading: Side | None = None
    columns: list[str] = []
    for line in readme.splitlines():
        if not line.startswith("|"):
            columns = []
            if found := _HEADING.match(line.lstrip("#* ")):
                heading = Side(found[1].lower())
            elif line.startswith("#"):
                heading = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not columns:
            columns = [cell.lower() for cell in cells]
        elif columns[0] == "key" and set(cells[0]) - set("-: "):
            directory = _directory(columns, cells, line) if "directory" in columns else heading
            if directory is not None:
                yield directory, cells[0]


def _directory(columns: list[str], cells: list[str], line: str) -> Side:
    said = cells[columns.index("directory")].lower()
    if said in ("backend", "frontend"):
        return Side(said)
    raise ValueError(f"the column directory says backend or frontend, not {said!r}: {line}")
