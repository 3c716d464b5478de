"""Linux's asynchronous I/O: one call gives the kernel many reads and writes, and an eventfd signals that some are done.

For files opened with O_DIRECT; on others the kernel does the I/O within `submit`.

Source: linux/aio_abi.h (struct iocb, struct io_event, IOCB_*), io_submit(2), io_getevents(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from xenbusd.api import address_of

FDSYNC, PREADV, PWRITEV = 3, 7, 8
"""IOCB_CMD_*."""

_RESFD = 1
"""IOCB_FLAG_RESFD."""

_IOCB = struct.Struct("=QIiHhIQQqQII")
"""data; key, rw_flags; opcode, priority, descriptor; iovecs, how many, offset; reserved, flags, eventfd."""
_EVENT = struct.Struct("=QQqq")
"""data, iocb; result, second result."""

_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""io_setup, io_destroy, io_getevents, io_submit."""

_libc = ctypes.CDLL("libc.so.6", use_errno=True)
_long, _pointer = ctypes.c_long, ctypes.c_void_p


class Transfer(NamedTuple):
    """One operation for the kernel."""

    op: int
    fd: int
    buffers: Sequence[memoryview]
    offset: int
    key: int
    """Given back with the result."""


class Aio:
    """One of the kernel's I/O contexts.

    Args:
        depth: most operations under way at a time.

    Raises:
        OSError: the kernel has none of these calls, or no more of these contexts (fs.aio-max-nr).
    """

    def __init__(self, depth: int) -> None:
        calls = _CALLS.get(platform.machine())
        if calls is None:
            raise OSError(errno.ENOSYS, "asynchronous I/O is not known for this processor")
        self._setup, self._destroy, self._getevents, self._submit = calls
        self.depth = depth
        self._iocbs = ctypes.create_string_buffer(_IOCB.size * depth)
        self._pointers = (ctypes.c_void_p * depth)()
        self._events = ctypes.create_string_buffer(_EVENT.size * depth)
        self._no_time = ctypes.create_string_buffer(16)
        context = ctypes.c_ulong(0)
        self._call(self._setup, _long(depth), ctypes.byref(context))
        self._context = _pointer(context.value)
        self._open = True
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when an operation has ended."""

    @staticmethod
    def _call(number: int, *arguments: object) -> int:
        result = int(_libc.syscall(_long(number), *arguments))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def submit(self, transfers: Sequence[Transfer]) -> int:
        """Begin operations, at most `depth` less those under way. Never waits for the device.

        Returns:
            How many of them, from the first on, the kernel has taken. An operation that cannot begin without waiting
            ends with -EAGAIN at once.

        Raises:
            OSError: the kernel takes none; EAGAIN if it has no room.
        """
        base, keep = ctypes.addressof(self._iocbs), []
        for slot, transfer in enumerate(transfers):
            address = count = flags = 0  # a flush must have zeros
            if transfer.op != FDSYNC:
                vectors = array_of(transfer.buffers)
                keep.append(vectors)  # the kernel reads them within the call
                address, count, flags = ctypes.addressof(vectors), len(vectors) // 2, os.RWF_NOWAIT
            _IOCB.pack_into(
                self._iocbs, slot * _IOCB.size,
                transfer.key, 0, flags,
                transfer.op, 0, transfer.fd,
                address, count, transfer.offset,
                0, _RESFD, self.fd,
            )  # fmt: skip
            self._pointers[slot] = base + slot * _IOCB.size
        return self._call(self._submit, self._context, _long(len(transfers)), ctypes.byref(self._pointers))

    def reap(self) -> list[tuple[int, int]]:
        """Take the operations that have ended, without waiting: key, and bytes or a negative errno."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        count = self._call(
            self._getevents, self._context, _long(0), _long(self.depth),
            ctypes.byref(self._events), ctypes.byref(self._no_time),
        )  # fmt: skip
        ended = _EVENT.iter_unpack(self._events.raw[: count * _EVENT.size])
        return [(key, result) for key, _, result, _ in ended]

    def close(self) -> None:
        """Destroy the context. Idempotent. Blocks until every operation under way has ended."""
        if self._open:
            self._open = False
            self._call(self._destroy, self._context)
            os.close(self.fd)


def array_of(buffers: Sequence[memoryview]) -> ctypes.Array[ctypes.c_uint64]:
    """The iovecs of buffers, as address, length, address, length...; buffers that are adjacent in memory become one."""
    words: list[int] = []
    end = -1
    for buffer in buffers:
        address, length = address_of(buffer), len(buffer)
        if address == end:
            words[-1] += length
        else:
            words += (address, length)
        end = address + length
    return (ctypes.c_uint64 * len(words))(*words)
