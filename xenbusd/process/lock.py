"""Waiting for a lock that its previous holder is about to release: a daemon's last I/O, or a program that it ran."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from xenbusd.errors import ResourceError

Locked = TypeVar("Locked")


async def once_unlocked(attempt: Callable[[], Awaitable[Locked]], *, patience_s: float, interval_s: float) -> Locked:
    """Call `attempt` until it gets its lock. It is called again because the kernel announces no release of a lock.

    Args:
        attempt: takes the lock without waiting, or raises ResourceError with EBUSY while the lock is held.
        patience_s: seconds after which that error is raised; 0: there is one attempt.
        interval_s: seconds between attempts.

    Returns:
        What `attempt` returned.

    Raises:
        ResourceError: the lock was not released in time, or `attempt` raised another one.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await attempt()
        except ResourceError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(interval_s)
