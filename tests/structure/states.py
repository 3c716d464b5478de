"""Draws the table of a device's states: which may follow which, for each side. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from xenbusd.bus.state import TRANSITIONS, Side, State

GAP = " " * 8


def states(transitions: Mapping[Side, Mapping[State, frozenset[State]]] = TRANSITIONS) -> str:
    """Return both sides' steps beside each other: a state, and below the number of each state that may follow it, 1."""
    sides = [_side(side, steps) for side, steps in transitions.items()]
    height = max(map(len, sides))
    for rows in sides:
        rows += [" " * len(rows[0])] * (height - len(rows))
    return "\n".join(GAP.join(rows).rstrip() for rows in zip(*sides, strict=True))


def _side(side: Side, steps: Mapping[State, frozenset[State]]) -> list[str]:
    known = sorted(steps.keys() | frozenset().union(*steps.values()))
    head = f"{side.value + ', from':17}to  " + " ".join(str(int(state)) for state in known)
    rows = [head]
    for state in known:
        marks = " ".join(str(int(to)) if to in steps.get(state, ()) else "." for to in known)
        rows.append(f"{int(state)} {state.title:16}-> {marks}")
    return rows
