"""Counts of a tree's modules, and a drawing of its floors as text. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median

from .modules import Module, circles

LONG = 400
"""Lines that no file exceeds."""

BEGIN, END = "<!-- make picture: begin -->\n```text\n", "\n```\n<!-- make picture: end -->"
"""What stands around the drawing in a document."""

Arrows = dict[str, set[str]]


def counts(modules: Mapping[str, Module], tests: Sequence[int]) -> str:
    """The figures that the design is held to, one a line.

    Args:
        modules: those of the tree.
        tests: the lines of each of its test files.
    """
    lines = sorted(module.lines for module in modules.values())
    rooms = arrows(modules)
    rows = {
        "modules": len(modules),
        "lines in a module": f"median {median(lines):.0f}, at most {lines[-1]}",
        f"modules over {LONG} lines": sum(count > LONG for count in lines),
        f"test files over {LONG} lines": f"{sum(count > LONG for count in tests)} of {len(tests)}",
        "arrows between modules": sum(len(module.imports) for module in modules.values()),
        "circles of modules": len(circles({name: module.imports for name, module in modules.items()})),
        "circles of rooms": len(circles(rooms)),
    }
    for floor in _floors(modules):
        mine = {room for room in rooms if room.partition(".")[0] == floor and room != floor}
        inside = sum(len(rooms[room] & mine) for room in mine)
        rows[f"floor {floor}"] = f"{len(mine)} rooms, {inside} arrows"
    return "\n".join(f"{name:26} {value}" for name, value in rows.items())


def drawing(modules: Mapping[str, Module]) -> str:
    """Each floor: its rooms, every one above those that it imports.

    Returns: for each room its name, a square for each module, its lines, and the rooms of the same floor it imports.
    """
    rooms = arrows(modules)
    return "\n\n".join(_floor(floor, modules, rooms) for floor in _floors(modules))


def taken(document: str) -> str:
    """Return the text between the marks of a document."""
    return document.partition(BEGIN)[2].partition(END)[0]


def put(document: str, text: str) -> str:
    """Return the document with `text` between its marks."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the document does not have the two marks")
    return f"{before}{begin}{text}{end}{after}"


def shape(text: str) -> list[str]:
    """Return a drawing's rooms and arrows, without what changes with every commit: sizes and counts."""
    return [re.sub(r"▪+\s+\d+", " ", line).strip() for line in text.splitlines() if "▪" in line]


def arrows(modules: Mapping[str, Module]) -> Arrows:
    """Which rooms each room imports. A driver's import of `xenbusd.api` is one of them."""
    found: Arrows = {module.room: set() for module in modules.values()}
    for module in modules.values():
        found[module.room] |= {modules[target].room for target in module.imports} - {module.room}
    return found


def _floors(modules: Mapping[str, Module]) -> list[str]:
    return sorted({module.floor for module in modules.values()})


def _floor(floor: str, modules: Mapping[str, Module], rooms: Arrows) -> str:
    own = {room: targets for room, targets in rooms.items() if room.partition(".")[0] == floor and room != floor}
    heights = _heights({room: targets & own.keys() for room, targets in own.items()})
    rows = [floor]
    for room in sorted(own, key=lambda room: (-heights[room], room)):
        inside = [module for module in modules.values() if module.room == room]
        targets = " ".join(sorted(target.rpartition(".")[2] for target in own[room] & own.keys()))
        squares, lines = "▪" * len(inside), sum(module.lines for module in inside)
        rows.append(f"  {room.rpartition('.')[2]:16} {squares:38} {lines:5}  {targets}".rstrip())
    return "\n".join(rows)


def _heights(below: Arrows) -> dict[str, int]:
    """How many rooms stand below each, one on the other. An arrow that closes a circle is not counted."""
    heights: dict[str, int] = {}

    def height(room: str, above: frozenset[str]) -> int:
        if room not in heights:
            heights[room] = max((height(to, above | {room}) + 1 for to in below[room] - above), default=0)
        return heights[room]

    for room in sorted(below):
        height(room, frozenset())
    return heights
