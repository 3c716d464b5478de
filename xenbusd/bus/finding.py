"""Findings: the reasons why a device cannot be used, in words for an administrator. Pure.

The bus has one for the event that it is waiting for, the toolstack derives one from the store alone, and a driver adds
findings that only it can make: from both ends' nodes (`Backend.explain`) or from a living device (`Driver.condition`).
Sentences that several of them need are defined here, so that all of them say the same.

Decisions: D59, D71.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from xenbusd.bus.state import Side, State
from xenbusd.ids import Domid


@dataclass(frozen=True)
class Finding:
    """One fact about a device, and what can be done about it. `str(finding)` is a sentence without its full stop.

    Args:
        who: the party that it is about, with the domain where that matters: "the frontend in domain 5".
        what: the rest of the statement: "has not offered its ring (its state is Initialising)".
        todo: the remedy, as a request to the administrator: "check that its driver is running"; empty: nothing but
            wait.
    """

    who: str
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.who} {self.what}" + (f"; {self.todo}" if self.todo else "")


class Nodes(NamedTuple):
    """Both directories of a device pair as they were read at one moment: for each key, relative to its directory, the
    bytes of its value. The frontend's may be anything."""

    backend: Mapping[str, bytes]
    frontend: Mapping[str, bytes]


def end(side: Side, domid: Domid) -> str:
    """Name one end: "the backend in domain 0"."""
    return f"the {side.value} in domain {domid}"


def not_begun(domid: Domid, device_class: str) -> Finding:
    """A backend that has done nothing yet."""
    todo = f"check that `xenbusd serve` runs there, with a driver for {device_class}"
    return Finding(end(Side.BACKEND, domid), "has not begun", todo)


def not_offered(domid: Domid, state: State) -> Finding:
    """A frontend that has not offered the ring for which its backend waits, at InitWait."""
    todo = "check that its driver is running" if state in (State.UNKNOWN, State.INITIALISING) else ""
    return Finding(end(Side.FRONTEND, domid), f"has not offered its ring (its state is {state.title})", todo)


def not_hotplugged(script: str | None, status: str | None) -> Finding:
    """A hotplug script that has not reported.

    Args:
        script: the node `script`; None: there is none.
        status: the node `hotplug-status`; None: it is not there.
    """
    name = f"the hotplug script {script}" if script else "the hotplug script"
    return Finding(name, f"has not reported (hotplug-status is {status or 'not there'})")


NOT_REMOVED = Finding("the toolstack", "has not removed the device's directory")
"""A device that has closed for good."""


def not_at(side: Side, domid: Domid, state: State) -> Finding:
    """An end that is not, or not yet, at the state that comes next."""
    return Finding(end(side, domid), f"has not switched to {state.title}")
