"""The error of this package, which knows nothing of images, of rings, or of its users. Pure."""

from __future__ import annotations


class NbdError(Exception):
    """An NBD server cannot be used, or a client cannot be served.

    Args:
        message: one sentence: what is wrong, and what to do where that is known.
        errno: the closest positive errno.
    """

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno
