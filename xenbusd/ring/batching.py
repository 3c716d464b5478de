"""Adaptive batching: decides how many answers a backend gathers before it publishes them. Pure: it only keeps counts.

Each publication may cost a notification: the backend wakes the frontend, and the frontend, with its next request, wakes
the backend. On a real guest that is most of the cost of a small request. A frontend with many requests under way goes
on sending while the backend answers, so answers that are gathered and published together save most of these
notifications. A frontend that sends nothing before it is answered would be stalled by a wait for a full batch.

`BatchSize` tells the two apart by the batches so far. It expects as many requests as came last time; when fewer come,
it expects fewer; and now and then it lets the caller wait for one more than expected, to learn whether that pays. Each
such trial that brings nothing doubles the number of batches until the next one.

Waiting means polling: the caller calls `BackRing.poll` while `worth_waiting` says so. `ring.polling` uses the same poll
for another decision: whether to poll an empty ring before sleeping, once every answer is published.

Decision: D36.
"""

from __future__ import annotations

TRIAL_FIRST, TRIAL_LAST = 4, 64
"""Batches between two trials: at first, and at most. Each trial that brings nothing doubles the number."""


class BatchSize:
    """The expected batch size of one ring.

    Args:
        most: answers in a full batch; a full batch is never held back.
    """

    __slots__ = ("_expected", "_interval", "_most", "_since_trial", "_trying")

    def __init__(self, most: int) -> None:
        self._most = most
        self._expected = 1
        self._trying = True
        self._since_trial = 0
        self._interval = TRIAL_FIRST

    def worth_waiting(self, gathered: int) -> bool:
        """Whether to poll for another request before `gathered` answers are published; False if there are none."""
        return 0 < gathered < (self._most if self._trying else self._expected)

    def published(self, gathered: int) -> None:
        """Record that a batch of `gathered` answers was published."""
        gathered = min(gathered, self._most)
        if gathered > self._expected or gathered == self._most:
            self._expected, self._trying, self._interval = gathered, True, TRIAL_FIRST
        elif gathered < self._expected:  # perhaps for this once, so halve the difference and try again at once
            self._expected, self._trying = (self._expected + gathered) // 2, True
        elif self._trying:
            self._trying, self._since_trial, self._interval = False, 0, min(2 * self._interval, TRIAL_LAST)
        else:
            self._since_trial += 1
            self._trying = self._since_trial >= self._interval
