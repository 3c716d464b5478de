"""Decides which requests of a ring may begin and which are held.

A request that was taken from the ring is held

* in a pause;
* for a barrier: a barrier begins once nothing else is under way, and nothing begins until it is done (T37);
* for lack of pages: while too many are mapped, nothing begins until all jobs are done and some pages are unmapped;
* for the disk's limits, until the next request may begin.

Requests begin in the order of the ring, so all requests behind a held one are held as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xenbusd_vbd.back.limits import Limits
from xenbusd_vbd.back.pages import Pages
from xenbusd_vbd.protocol import SECTOR, WRITE_BARRIER, Request


class Gate:
    """The gate of one ring.

    Args:
        pages: asked whether too many are mapped.
        limits: for all queues of the disk together.
        resume: called when the next request may begin within the limits.
        paused: whether it begins with a pause.
    """

    def __init__(self, pages: Pages, limits: Limits, resume: Callable[[], None], *, paused: bool) -> None:
        self.paused = paused
        self.held: list[Request] = []
        """Requests taken and not begun, in the order of the ring."""
        self._pages = pages
        self._limits = limits
        self._resume = resume
        self._timer: asyncio.TimerHandle | None = None
        self._barrier = False
        """The request that began last is a barrier, and may be under way."""
        self._quiet = False
        """Nothing may begin while anything is under way."""

    @property
    def is_open(self) -> bool:
        """Whether any request may begin now, without a call of `admit`."""
        return not (self.held or self.paused or self._limits.active or self._pages.full)

    @property
    def is_timed(self) -> bool:
        """Whether requests are held for the limits."""
        return self._timer is not None

    @property
    def is_strict(self) -> bool:
        """Whether every request of this batch must be admitted; otherwise only barriers must."""
        return self._quiet or self._limits.active

    def begin_batch(self) -> bool:
        """Take stock before a batch of requests. Return whether the gate `is_strict`."""
        self._quiet = self._barrier or self._pages.full
        return self._quiet or self._limits.active

    def needs_quiet(self, request: Request) -> bool:
        """Whether a request may begin only while nothing is under way."""
        return self._quiet or request.op == WRITE_BARRIER

    def admit(self, request: Request, under_way: int) -> bool:
        """Whether a request may begin. If it may, the limits are charged for it.

        Args:
            request: the next one, in the order of the ring.
            under_way: jobs that are not done; exact if it `needs_quiet`.
        """
        limited = self._limits.active
        if self.needs_quiet(request):
            if under_way:
                return False
            self._barrier = self._quiet = request.op == WRITE_BARRIER
        return not limited or self._is_within_limits(request)

    def _is_within_limits(self, request: Request) -> bool:
        loop = asyncio.get_running_loop()
        delay_s = self._limits.delay_s(loop.time())
        if delay_s:
            self._timer = loop.call_later(delay_s, self._resume)
            return False
        self._limits.charge(request.sectors * SECTOR if request.grefs else 0)
        return True

    def release(self) -> list[Request]:
        """Hand the held requests to the caller, who begins or refuses them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self.held = self.held, []
        return held

    def lift_limits(self) -> None:
        """From now on, requests begin as if there were no limits."""
        self._limits = Limits()
