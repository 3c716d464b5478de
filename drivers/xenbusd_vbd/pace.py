"""How many answers to gather before they are published. Pure: it counts, and looks at nothing.

A frontend with many requests under way goes on sending while we answer. To publish each answer at once wakes it for
each, and wakes us for each of its next requests; on a real guest that is most of what a small request costs. To wait
for a full batch would stall a frontend that has no more to send until it is answered. So expect as many as came the
last time: if fewer come, expect as few; and try for one more, as long as that goes well.
"""

from __future__ import annotations

TRY_FIRST, TRY_LAST = 4, 64
"""Batches between two tries for one more: at first, and after tries that failed, each of which doubles it."""


class Pace:
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
        return gathered < min(self._expected + self._trying, self._most)

    def published(self, gathered: int) -> None:
        """A batch is published: of so many, or more."""
        gathered = max(1, min(gathered, self._most))
        if gathered == self._most or gathered > self._expected:
            self._expected, self._trying, self._pause = gathered, True, TRY_FIRST
            return
        if gathered < self._expected:
            self._expected, self._trying = gathered, False
        elif self._trying:
            self._trying, self._pause = False, min(2 * self._pause, TRY_LAST)
            self._since_try = 0
            return
        self._since_try += 1
        if self._since_try >= self._pause:
            self._trying, self._since_try = True, 0
