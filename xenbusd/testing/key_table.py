"""A driver's table of keys, as its README shows it to people: read, so that a test can hold the driver to it.

A table of keys is one whose first column is called "key", and of which it is said whose directory it is about: by a
column "directory", or by a line before it, in the same section, that begins with "Backend's directory" or "Frontend's
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
    """A key without its numbers: `ring-ref3` and `queue-2/ring-ref3` are told of as `ring-ref0`."""
    return _NUMBER.sub("0", _QUEUE.sub("", key))


def _rows(readme: str) -> Iterator[tuple[Side, str]]:
    """Each row of each table of keys: whose directory, and the cell with the keys."""
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
