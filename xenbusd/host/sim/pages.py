"""Pages of memory files as one contiguous range of this process's memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable
from typing import NamedTuple

from xenbusd.errors import LocalProtocolError
from xenbusd.host.address import address_of
from xenbusd.ids import PAGE_SIZE

_MAP_FIXED = 0x10
"""Map at exactly this address (linux/include/uapi/asm-generic/mman-common.h)."""
_MAP_FAILED = ctypes.c_void_p(-1).value

# CDLL, not PyDLL: the kernel may have to wait for another thread's page fault.
_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_mmap.restype = ctypes.c_void_p


class Run(NamedTuple):
    """Pages that follow each other in one file."""

    fd: int
    page: int
    pages: int


def runs(places: Iterable[tuple[int, int]]) -> list[Run]:
    """Join single (descriptor, page) places, in order, to as few runs as possible."""
    joined: list[Run] = []
    for fd, page in places:
        last = joined[-1] if joined else None
        if last is not None and last.fd == fd and last.page + last.pages == page:
            joined[-1] = last._replace(pages=last.pages + 1)
        else:
            joined.append(Run(fd, page, 1))
    return joined


class Pages:
    """A range whose parts are shared with every process that maps the same files.

    Python's own mmap object reserves and owns the range, and the files are laid over it. So Python knows every slice
    that is alive, and the range cannot be unmapped under one.

    Args:
        parts: the runs, one after the other. Their descriptors are not needed afterwards.
        writable: otherwise writing through `view` raises TypeError.

    Raises:
        OSError: out of memory, or a descriptor that does not allow it.
    """

    def __init__(self, parts: Iterable[Run], *, writable: bool) -> None:
        parts = list(parts)
        size = sum(part.pages for part in parts) * PAGE_SIZE
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        self._range = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)
        try:
            where = address_of(self._range)
            for part in parts:
                length = part.pages * PAGE_SIZE
                flags = mmap.MAP_SHARED | _MAP_FIXED
                if _mmap(where, length, protection, flags, part.fd, part.page * PAGE_SIZE) == _MAP_FAILED:
                    code = ctypes.get_errno() or errno.EIO
                    raise OSError(code, os.strerror(code))
                where += length
        except BaseException:
            self._range.close()
            raise
        self.view = memoryview(self._range)

    def close(self) -> None:
        """Unmap the range. Idempotent.

        Raises:
            LocalProtocolError: a slice or cast of `view` is alive; everything is left as it was.
        """
        try:
            self.view.release()
            self._range.close()
        except BufferError:
            if not self._range.closed:
                self.view = memoryview(self._range)
            raise LocalProtocolError(
                f"{len(self.view) // PAGE_SIZE} pages cannot be unmapped: a slice of their view is still in use"
            ) from None
