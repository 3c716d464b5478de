"""A toolstack's work on the store, as libxl does it: make a device pair, wait for it, change it, take it apart.

libxl knows a closed list of device classes; this works for any (T68).

Every name of `__all__` is imported from its module when it is first used, so that a command which needs only a
deadline's default does not load a store client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenbusd.toolstack.attaching import attach
    from xenbusd.toolstack.deadlines import ATTACH_S, DETACH_S, PAUSE_S
    from xenbusd.toolstack.detaching import detach, remove
    from xenbusd.toolstack.live import pause, write_live
    from xenbusd.toolstack.pair import PairState, devices, following, observe
    from xenbusd.toolstack.waiting import wait_connected
    from xenbusd.toolstack.why import explain, stuck

_HOMES = {
    "attaching": ("attach",),
    "deadlines": ("ATTACH_S", "DETACH_S", "PAUSE_S"),
    "detaching": ("detach", "remove"),
    "live": ("pause", "write_live"),
    "pair": ("PairState", "devices", "following", "observe"),
    "waiting": ("wait_connected",),
    "why": ("explain", "stuck"),
}
"""Module of this package -> the names that the package re-exports from it."""

__all__ = [
    "ATTACH_S",
    "DETACH_S",
    "PAUSE_S",
    "PairState",
    "attach",
    "detach",
    "devices",
    "explain",
    "following",
    "observe",
    "pause",
    "remove",
    "stuck",
    "wait_connected",
    "write_live",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value  # found without this function from now on
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
