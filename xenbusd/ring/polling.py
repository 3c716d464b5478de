"""Whether a backend should look at its ring for a while before it sleeps. Pure: it counts, and looks at nothing.

A frontend with few requests under way sends the next ones as soon as it has its answers. To see them come spares it a
notification, and us being woken: that is most of what a small request costs. A frontend with nothing to send makes each
look a waste of a processor, so looks for nothing soon end, until they are tried again; KVM does the same with a
processor of a guest that has halted (halt_poll_ns).
"""

from __future__ import annotations

POLLS = 1000
"""Looks in a row: some 20 us of a processor, which is less than KVM allows."""
MISSES_MAX = 8
"""Times for nothing, one after another, that are forgiven."""
SLEEPS = 64
"""Sleeps without a look, before it is tried again."""


class BusyPoll:
    """What one ring's looks have brought so far."""

    __slots__ = ("_faith", "_sleeps")

    def __init__(self) -> None:
        self._faith = MISSES_MAX
        self._sleeps = 0

    def is_worth_it(self) -> bool:
        """Whether to look now, rather than sleep at once."""
        if self._faith:
            return True
        self._sleeps += 1
        if self._sleeps < SLEEPS:
            return False
        self._sleeps, self._faith = 0, 1
        return True

    def found(self) -> None:
        """A request came while we looked."""
        self._faith = MISSES_MAX

    def miss(self) -> None:
        """None came."""
        self._faith -= 1
