"""The error of everything in this package, which knows nothing of disks' images, of rings, or of who uses it. Pure."""

from __future__ import annotations


class NbdError(Exception):
    """An NBD server cannot be used, or a client cannot be served.

    Args:
        message: one sentence: what is wrong, and what to do where that is known.
        errno: the positive errno that says it best.
    """

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno
