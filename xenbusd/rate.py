"""A rate limit: one token bucket, whose rate may change while it is in use. Pure: the caller has the clock."""

from __future__ import annotations

BURST_S = 0.1
"""The burst allowed after idling, in seconds of the limit: so small that the count of a whole second is kept."""


class RateLimit:
    """One token bucket: a number of units a second, whatever a unit is.

    An act may begin if the bucket is not in debt, whatever the act costs. So an act that costs more than a second's
    units is carried out, and those behind it wait for longer.
    """

    __slots__ = ("_at", "_left", "per_s")

    def __init__(self) -> None:
        self.per_s = 0
        """The limit, in units a second; 0: there is none."""
        self._left = 0.0
        self._at = 0.0

    def set(self, per_s: int, now: float) -> None:
        """Change the limit.

        Args:
            per_s: units a second; 0 is no limit.
            now: seconds, of a clock that only goes forward.
        """
        self.per_s = per_s
        self._left = per_s * BURST_S
        self._at = now

    def delay_s(self, now: float) -> float:
        """Seconds until the next act may begin; 0.0 if it may begin now."""
        passed, self._at = now - self._at, now
        rate = self.per_s
        if not rate:
            return 0.0
        self._left = min(self._left + passed * rate, max(1.0, rate * BURST_S))
        return -self._left / rate if self._left < 0 else 0.0

    def charge(self, units: int) -> None:
        """Record that an act of this many units begins."""
        self._left -= units
