"""How many answers to gather before they are published. Pure: it counts, and looks at nothing.

A frontend with many requests under way goes on sending while we answer. To publish each answer at once wakes it for
each, and wakes us for each of its next requests; on a real guest that is most of what a small request costs. To wait
for a full batch would stall a frontend that has no more to send until it is answered. So expect as many as came the
last time; come fewer, expect fewer; and now and then try how many come if they are waited for, as long as that pays.
"""

from __future__ import annotations

TRY_FIRST, TRY_LAST = 4, 64
"""Batches between two tries: at first, and after tries for nothing, each of which doubles it."""


class BatchSize:
    """The pace of one ring.

    Args:
        most: answers that are never held back for more.
    """

    __slots__ = ("_expected", "_most", "_pause", "_since_try", "_trying")

    def __init__(self, most: int) -> None:
        self._most = most
        self._expected = 1
        self._trying = True
        self._since_try = 0
        self._pause = TRY_FIRST

    def worth_waiting(self, gathered: int) -> bool:
        """Whether to look for another request before so many answers are published."""
        return gathered < (self._most if self._trying else self._expected)

    def published(self, gathered: int) -> None:
        """A batch is published: of so many, or more."""
        gathered = min(gathered, self._most)
        if gathered > self._expected or gathered == self._most:
            self._expected, self._trying, self._pause = gathered, True, TRY_FIRST
        elif gathered < self._expected:  # it may be for once: a frontend does other things, too
            self._expected, self._trying = (self._expected + gathered) // 2, True
        elif self._trying:
            self._trying, self._since_try, self._pause = False, 0, min(2 * self._pause, TRY_LAST)
        else:
            self._since_try += 1
            self._trying = self._since_try >= self._pause
