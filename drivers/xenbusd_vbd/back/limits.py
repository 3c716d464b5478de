"""How fast a disk may be: requests and bytes a second, changed while it is in use. Pure: the caller has the clock."""

from __future__ import annotations

BURST_S = 0.1
"""What may be used at once after a pause, in seconds of the limit; little enough that a second's count is kept."""


class Limits:
    """Two token buckets, for all queues of a disk.

    A request begins if neither bucket is in debt, whatever it costs: so a request larger than a second's bytes is
    served, and the ones behind it wait for longer.
    """

    def __init__(self) -> None:
        self.active = False
        """Whether there is any limit."""
        self._rates = (0, 0)
        self._left = [0.0, 0.0]
        self._at = 0.0

    def set(self, requests_per_s: int, bytes_per_s: int, now: float) -> None:
        """Change the limits; 0 is none.

        Args:
            requests_per_s: requests of any kind.
            bytes_per_s: of data read and written.
            now: seconds, of a clock that only goes forward.
        """
        self._rates = (requests_per_s, bytes_per_s)
        self._left = [rate * BURST_S for rate in self._rates]
        self._at = now
        self.active = any(self._rates)

    def delay_s(self, now: float) -> float:
        """Seconds until the next request may begin; 0.0 if it may now."""
        passed, self._at = now - self._at, now
        delay = 0.0
        for which, rate in enumerate(self._rates):
            if rate:
                self._left[which] = min(self._left[which] + passed * rate, max(1.0, rate * BURST_S))
                if self._left[which] < 0:
                    delay = max(delay, -self._left[which] / rate)
        return delay

    def charge(self, bytes_: int) -> None:
        """A request with so many bytes of data begins."""
        self._left[0] -= 1
        self._left[1] -= bytes_
