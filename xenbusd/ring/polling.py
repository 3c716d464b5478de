"""Adaptive polling: whether a backend polls its ring before it waits for an event. Pure: it only keeps counts.

A frontend with few requests under way sends the next ones as soon as it has its answers. A backend that polls for them
spares the frontend a notification and itself a wake-up, which is most of what a small request costs. A frontend with
nothing to send makes each poll a waste of a processor. So polling is adaptive, as KVM's for a halted virtual processor
(halt_poll_ns): polls that miss soon stop it, and now and then it is tried again.

The policy as a whole, which `BackLink` carries out for a driver that asks: `link.serve(drain, poll=BusyPoll())`:

* poll only if no other ring of this process had an event since this ring's previous turn: others are not kept waiting;
* not while requests are under way, for their end will wake us; nor for rings that share a port;
* unmask the port first, since the next request need not wait for that;
* after `ROUNDS_MAX` successful polls in a row, control returns to the event loop.

Decisions: D35, D48.
"""

from __future__ import annotations

POLLS = 1000
"""Reads of the ring's index in one poll: some 20 us of a processor, which is less than KVM allows."""

ROUNDS_MAX = 8
"""Successful polls in a row before control returns to the event loop. That is well under 1 ms; a malicious guest can
stretch it to about 1.5 ms."""

MISSES_MAX = 8
"""Consecutive polls without a request after which polling stops for a while."""

SLEEPS = 64
"""Waits for an event, without a poll before them, after which one poll is tried again."""


class BusyPoll:
    """The counts of one ring. Hand a new one to `link.start` or `link.serve` for each ring.

    Args:
        misses_max: consecutive misses after which polling stops.
        sleeps: waits for an event before one poll is tried again.
    """

    __slots__ = ("_left", "_misses_max", "_sleeps", "_waited")

    def __init__(self, *, misses_max: int = MISSES_MAX, sleeps: int = SLEEPS) -> None:
        self._misses_max = misses_max
        self._sleeps = sleeps
        self._left = misses_max
        """Misses that may still happen before polling stops."""
        self._waited = 0

    def is_worth_it(self) -> bool:
        """Whether to poll now, rather than to wait for an event at once."""
        if self._left:
            return True
        self._waited += 1
        if self._waited < self._sleeps:
            return False
        self._waited, self._left = 0, 1
        return True

    def found(self) -> None:
        """Record a poll that saw a request."""
        self._left = self._misses_max

    def miss(self) -> None:
        """Record a poll that saw none."""
        self._left -= 1
