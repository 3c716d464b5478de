"""A disk image: a raw file or a block device, opened as asked and never probed for a format (XSA-258)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from xenbusd.api import ResourceError
from xenbusd_vbd.image import traits
from xenbusd_vbd.protocol import SECTOR

_BLKDISCARD = 0x1277
"""Requests of linux/fs.h."""

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
"""linux/falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""

_NOWAIT = os.RWF_NOWAIT

_libc = ctypes.CDLL("libc.so.6", use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


class Image:
    """An open image. Offsets and sizes are in bytes; reads and writes are whole or fail.

    Args:
        path: absolute path of a regular file or block device.
        writable: False opens it read-only, so that no bug above can write to it (XSA-142).
        shared: do not take the lock that keeps a second user out ("w!").
        direct: bypass the page cache where a transfer is aligned and the file system can do it.

    Raises:
        ResourceError: it does not exist, is no file or block device, may not be opened in this way, or is in use.
    """

    def __init__(self, path: str, *, writable: bool, shared: bool = False, direct: bool = False) -> None:
        self.path = path
        self.direct_fd = -1
        """Open with O_DIRECT; -1 if everything goes through the page cache."""
        self.writable = writable
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self.fd = os.open(path, flags)
        except OSError as error:
            raise ResourceError(f"cannot open {path}: {error.strerror}", error.errno or errno.EIO) from error
        try:
            self.traits = traits.inspect(self.fd, path)
            if not shared:
                self._lock()
            self.size_bytes = traits.size_bytes(self.fd, self.traits.is_device)
            self.can_discard = writable and self._may_discard()
            if direct:
                self._open_directly(flags)
        except BaseException:
            self.close()
            raise

    @property
    def sectors(self) -> int:
        """Whole sectors of 512 bytes."""
        return self.size_bytes // SECTOR

    def _lock(self) -> None:
        # The lock belongs to the open file, which the kernel keeps until the last I/O of a killed process is done.
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_EX if self.writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"{self.path} is in use by another device or program; mode w! shares it all the same", errno.EBUSY
            ) from None

    def _open_directly(self, flags: int) -> None:
        with suppress(OSError):  # the file system has no O_DIRECT
            self.direct_fd = os.open(f"/proc/self/fd/{self.fd}", flags | os.O_DIRECT)

    def buffer_all(self) -> None:
        """Use the page cache for everything from now on."""
        if self.direct_fd >= 0:
            os.close(self.direct_fd)
            self.direct_fd = -1

    def is_aligned(self, buffers: Sequence[memoryview], offset: int, length: int) -> bool:
        """Whether a transfer can bypass the page cache. Buffers begin at multiples of 512, or of their length."""
        block = self.traits.logical_block_bytes
        if self.direct_fd < 0 or (offset | length) % block:
            return False
        return block <= SECTOR or not any(len(buffer) % block for buffer in buffers)

    def _may_discard(self) -> bool:
        """Whether discards work. For a file, that is tried behind its end, where it harms nothing."""
        if self.traits.is_device:
            return self.traits.discards
        return self._fallocate(self.size_bytes, 4096) == 0

    def refresh(self) -> None:
        """Find out the size again.

        Raises:
            ResourceError: it cannot be determined.
        """
        try:
            self.size_bytes = traits.size_bytes(self.fd, self.traits.is_device)
        except OSError as error:
            raise ResourceError(
                f"cannot tell how large {self.path} is: {error.strerror}", error.errno or errno.EIO
            ) from error

    def read(self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False) -> bool:
        """Fill `buffers`, `length` bytes together; return True. With `nowait`, return False if that takes the device.

        Raises:
            OSError: reading failed, or the image has become shorter.
        Blocks: without `nowait`, for the device.
        """
        fd = self.fd if self.direct_fd < 0 or not self.is_aligned(buffers, offset, length) else self.direct_fd
        done = os.preadv(fd, buffers, offset, _NOWAIT if nowait else 0)
        if done != length:
            if nowait:
                return False
            self._finish(os.preadv, fd, buffers, offset, done, length)
        return True

    def write(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """Write `buffers`, `length` bytes together.

        Raises:
            OSError
        Blocks: when the page cache is full of unwritten data.
        """
        fd = self.fd if self.direct_fd < 0 or not self.is_aligned(buffers, offset, length) else self.direct_fd
        done = os.pwritev(fd, buffers, offset)
        if done != length:
            self._finish(os.pwritev, fd, buffers, offset, done, length)

    def _finish(
        self, call: Callable[..., int], fd: int, buffers: Sequence[memoryview], offset: int, done: int, length: int
    ) -> None:
        """Transfer the rest, if the kernel transferred less than was asked for."""
        while done < length:
            left, skip = [], done
            for buffer in buffers:
                if skip < len(buffer):
                    left.append(buffer[skip:])
                skip = max(0, skip - len(buffer))
            moved = call(fd, left, offset + done)
            if moved <= 0:
                raise OSError(errno.EIO, f"{self.path} ends at {offset + done}")
            done += moved

    def flush(self) -> None:
        """Put every write on stable storage.

        Raises:
            OSError
        Blocks: for the device.
        """
        os.fdatasync(self.fd)

    def discard(self, offset: int, length: int, *, secure: bool = False) -> None:
        """Discard a range; in a file it reads as zeros afterwards. With `secure`, on devices only, its data is erased.

        A device discards whole blocks of its own, which may be larger than 512 bytes: a block that the range covers
        only in part stays, but a secure discard of such a range is refused.

        Raises:
            OSError
        """
        if self.traits.is_device and not secure:
            block = self.traits.logical_block_bytes
            end = (offset + length) // block * block
            offset = -(-offset // block) * block
            length = max(0, end - offset)
        if not length:
            return
        if self.traits.is_device:
            request = traits.BLKSECDISCARD if secure else _BLKDISCARD
            fcntl.ioctl(self.fd, request, offset.to_bytes(8, "little") + length.to_bytes(8, "little"))
        elif code := self._fallocate(offset, length):
            raise OSError(code, os.strerror(code))

    def _fallocate(self, offset: int, length: int) -> int:
        while _libc.fallocate(self.fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
            if ctypes.get_errno() != errno.EINTR:
                return ctypes.get_errno()
        return 0

    def close(self) -> None:
        """Close the file, which releases the lock. Idempotent."""
        self.buffer_all()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
