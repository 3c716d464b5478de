"""xenbusd.process.lock: attempts are repeated while a lock is held, and only then."""

from __future__ import annotations

import errno

import pytest

from xenbusd.errors import ResourceError
from xenbusd.process.lock import once_unlocked


class Lock:
    """A lock that is held for some attempts.

    Args:
        errors: an errno for each attempt that fails.
    """

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.attempts = 0

    async def take(self) -> str:
        """Attempt it."""
        self.attempts += 1
        if self.errors:
            raise ResourceError("in use", self.errors.pop(0))
        return "locked"


async def test_attempts_until_it_is_released() -> None:
    """The result is the attempt's."""
    lock = Lock(errno.EBUSY, errno.EBUSY)
    assert await once_unlocked(lock.take, patience_s=60, interval_s=0) == "locked"
    assert lock.attempts == 3


async def test_without_patience_there_is_one_attempt() -> None:
    """Its error is raised."""
    lock = Lock(errno.EBUSY)
    with pytest.raises(ResourceError, match="in use"):
        await once_unlocked(lock.take, patience_s=0, interval_s=0)
    assert lock.attempts == 1


async def test_another_error_is_raised_at_once() -> None:
    """Waiting does not help against it."""
    lock = Lock(errno.EBUSY, errno.EACCES)
    with pytest.raises(ResourceError) as caught:
        await once_unlocked(lock.take, patience_s=60, interval_s=0)
    assert (caught.value.errno, lock.attempts) == (errno.EACCES, 2)
