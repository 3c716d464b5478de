"""The limits of a disk: requests and bytes a second, for all of its queues together. Pure: the caller has the clock."""

from __future__ import annotations

from xenbusd.api import RateLimit


class Limits:
    """Two rate limits; a request begins if neither makes it wait."""

    def __init__(self) -> None:
        self.active = False
        """Whether there is any limit."""
        self._requests = RateLimit()
        self._bytes = RateLimit()

    def set(self, requests_per_s: int, bytes_per_s: int, now: float) -> None:
        """Change the limits; 0 is none.

        Args:
            requests_per_s: requests of any kind.
            bytes_per_s: of data read and written.
            now: seconds, of a clock that only goes forward.
        """
        self._requests.set(requests_per_s, now)
        self._bytes.set(bytes_per_s, now)
        self.active = bool(requests_per_s or bytes_per_s)

    def delay_s(self, now: float) -> float:
        """Seconds until the next request may begin; 0.0 if it may begin now."""
        return max(self._requests.delay_s(now), self._bytes.delay_s(now))

    def charge(self, bytes_: int) -> None:
        """Record that a request with so many bytes of data begins."""
        self._requests.charge(1)
        self._bytes.charge(bytes_)
