"""The states of a device's two ends, and every legal step between them. Pure.

Two rules:

1. `TRANSITIONS`, and nothing else, says which state may follow which.
2. Whether a connection has ended, and why, is decided by `backend_end_reason` and `frontend_end_reason`, from one
   reading of the store, and nowhere else. They count no events: watches coalesce, so any jump may be seen (T2).

Source: xen/include/public/io/xenbus.h (enum xenbus_state); the rules T1 to T58 in docs/rules.md.
Decision: D1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum


class State(IntEnum):
    """enum xenbus_state, as it stands in a `state` node in decimal."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8

    @property
    def title(self) -> str:
        """The name as the 2006 paper and Xen's headers spell it: "InitWait"."""
        return self.name.title().replace("_", "")


class Side(Enum):
    """Which end of a pair."""

    BACKEND = "backend"
    FRONTEND = "frontend"

    @property
    def opposite(self) -> Side:
        """The other end's side."""
        return Side.FRONTEND if self is Side.BACKEND else Side.BACKEND


def parse_state(value: bytes | None) -> State:
    """Read a `state` node's value; a value that is absent or does not parse counts as UNKNOWN (T9)."""
    return _BY_VALUE.get(value or b"", State.UNKNOWN)


_BY_VALUE = {b"%d" % state: state for state in State}


_1, _2, _3, _4, _5, _6, _7, _8 = list(State)[1:]

TRANSITIONS: Mapping[Side, Mapping[State, frozenset[State]]] = {
    Side.BACKEND: {
        _1: frozenset({_2, _5, _6}),
        _2: frozenset({_3, _4, _5, _6}),
        _3: frozenset({_4, _5, _6}),
        _4: frozenset({_5, _6, _8}),  # 6 at once: the frontend has gone or skipped Closing
        _5: frozenset({_6}),
        _6: frozenset({_2}),  # a reconnect, while `online` is 1 (T51); nothing but 2 (T56)
        _8: frozenset({_4, _5, _6}),
    },
    Side.FRONTEND: {
        _1: frozenset({_3, _4, _5, _6, _7}),  # netfront goes to 4, or to 7 for XDP, without 3 (T40, T46)
        _3: frozenset({_4, _5, _6}),
        _4: frozenset({_5, _6, _7}),
        _5: frozenset({_6}),
        _6: frozenset({_1}),  # begin again (T51)
        _7: frozenset({_4, _5, _6}),
    },
}

OFFERED = frozenset({State.INITIALISED, State.CONNECTED})
"""The frontend's ring is in the store: blkfront stops at 3, netfront goes to 4 at once (T40)."""

ACTIVE = frozenset({State.INIT_WAIT, State.INITIALISED, State.CONNECTED, State.CLOSING, State.RECONFIGURING})
"""A frontend in one of these will still close by itself; in any other state, no frontend is there to do it (T52)."""


def may_switch(side: Side, old: State, new: State) -> bool:
    """Whether `side` may go from `old` to `new`. Staying is no step, and always allowed."""
    return old is new or new in TRANSITIONS[side].get(old, frozenset())


@dataclass(frozen=True, slots=True)
class Seen:
    """One observation of the store. UNKNOWN stands for an absent node."""

    own: State
    otherend: State
    online: bool
    hotplug_status: str | None

    @property
    def gate_open(self) -> bool:
        """Whether the hotplug step is done, where there is one: exactly "connected" counts (T21, T22)."""
        return self.hotplug_status == "connected"


def backend_end_reason(seen: Seen, written: State) -> str | None:
    """Return why a backend's connection, established or not yet, has ended; None while it has not.

    Args:
        seen: the store as it is now.
        written: the state that we wrote last.
    """
    own, otherend = seen.own, seen.otherend
    if own is State.UNKNOWN:
        return "removed"
    if own is State.INITIALISING and written is not State.INITIALISING:
        return "replaced"  # the directory was removed and made anew between two observations
    if otherend is State.UNKNOWN:
        return "the frontend is gone"
    if otherend is State.CLOSED:
        return "the frontend closed"
    if own is State.CLOSED:
        return "the toolstack closed it"
    if own is State.CLOSING and otherend not in ACTIVE:
        return "the toolstack closes it, and no frontend is active"
    if written is State.CONNECTED or written is State.CLOSING:
        if otherend is State.INITIALISING:
            return "the frontend began again"
    elif otherend is State.CLOSING:
        return "the frontend closed"
    return None  # in particular: both at Closing. The ring is served until the frontend has Closed (T50, T55)


def frontend_end_reason(seen: Seen, written: State) -> str | None:
    """Return why a frontend's connection, established or not yet, has ended; None while it has not.

    Args:
        seen: the store as it is now; `online` is the backend's.
        written: the state that we wrote last.
    """
    own, otherend = seen.own, seen.otherend
    if own is State.UNKNOWN:
        return "removed"
    if own is State.INITIALISING and written is not State.INITIALISING:
        return "replaced"
    if otherend is State.UNKNOWN:
        return "the backend is gone"
    if written is State.INITIALISING:
        return None  # a backend that is still closing from the last time returns to InitWait (T41)
    if otherend in (State.CLOSING, State.CLOSED):
        return "the backend closed"
    if written is State.CONNECTED and otherend in (State.INITIALISING, State.INIT_WAIT):
        return "the backend began again"
    return None
