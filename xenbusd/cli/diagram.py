"""Draws a device's timeline in the form of the 2006 paper's event diagram. Pure.

Each event has one line: the milliseconds since the first event, then the columns Hotplug, Backend and Frontend. As in
the paper, an arrow points to the end that the event is meant for.
"""

from __future__ import annotations

from collections.abc import Sequence

from xenbusd.control.protocol import TimelineEntry

HOTPLUG, BACKEND, FRONTEND = 20, 44, 72
"""The middle of each column."""

WIDTH = FRONTEND + 8

_TO_THE_OTHER_END = frozenset({"Initialised", "Connected", "Closing", "Closed"})
"""State changes that the paper draws as an arrow to the other end."""


def draw(entries: Sequence[TimelineEntry]) -> list[str]:
    """Return the diagram's lines.

    Args:
        entries: events, oldest first.
    """
    lines = [
        _line("", [(BACKEND, "Xenbus"), (FRONTEND, "Xenbus")]),
        _line("    ms", [(HOTPLUG, "Hotplug"), (BACKEND, "Backend"), (FRONTEND, "Frontend")]),
        _line("", [(HOTPLUG, "-------"), (BACKEND, "-------"), (FRONTEND, "--------")]),
    ]
    start = entries[0].at if entries else 0.0
    began = {"backend": False, "frontend": False}
    left = list(entries)
    if {entry.actor for entry in left[:2]} == set(began) and left[0].event == left[1].event:
        title = left[0].event
        lines.append(_line(_ms(0.0), [(BACKEND, title), (FRONTEND, title)]))
        left = left[2:]
        began = {"backend": True, "frontend": True}
    for entry in left:
        if entry.actor in began:
            began[entry.actor] = True
        marks = [(BACKEND, "|")] * began["backend"] + [(FRONTEND, "|")] * began["frontend"]
        lines.append(_event(_ms(entry.at - start), entry.actor, entry.event, marks))
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:8.1f}"


def _event(time: str, actor: str, event: str, marks: list[tuple[int, str]]) -> str:
    """The line of one event. `marks` are the columns that have begun; the event replaces the mark of its actor."""
    if actor == "hotplug":
        if event in ("start", "remove"):
            arrow = f"|<---{event}".ljust(BACKEND - HOTPLUG, "-") + "+"
            return _line(time, [*(m for m in marks if m[0] != BACKEND)], start=(HOTPLUG, arrow))
        arrow = event.ljust(BACKEND - HOTPLUG + len(event) // 2 - 1, "-") + ">|"
        return _line(time, [m for m in marks if m[0] != BACKEND], start=(HOTPLUG - len(event) // 2, arrow))
    column = BACKEND if actor == "backend" else FRONTEND
    others = [m for m in marks if m[0] != column]
    if event not in _TO_THE_OTHER_END or not others:
        return _line(time, [*others, (column, event)])
    if actor == "backend":
        begin = BACKEND - len(event) // 2
        return _line(time, [], start=(begin, event.ljust(FRONTEND - begin - 1, "-") + ">|"))
    end = FRONTEND - len(event) // 2 + len(event)
    return _line(time, [], start=(BACKEND, "|<" + event.rjust(end - BACKEND - 2, "-")))


def _line(time: str, centred: Sequence[tuple[int, str]], start: tuple[int, str] | None = None) -> str:
    """Lay out a line: some pieces are centred on a column, one begins at a column."""
    cells = list(time.ljust(WIDTH + 8))
    pieces = [(column - len(text) // 2, text) for column, text in centred]
    for at, text in [*pieces, *([start] if start else [])]:
        cells[at : at + len(text)] = text
    return "".join(cells).rstrip()
