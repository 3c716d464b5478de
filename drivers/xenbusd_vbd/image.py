"""A disk image: a raw file or a block device, opened as asked and never probed for a format (XSA-258)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from xenbusd.api import ImageError
from xenbusd_vbd.protocol import SECTOR

_BLKGETSIZE64 = 0x80081272
_BLKPBSZGET = 0x127B
_BLKDISCARD = 0x1277
"""Requests of linux/fs.h."""

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
"""linux/falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""

_MEMORY_FILESYSTEMS = frozenset({0x01021994, 0x858458F6})
"""linux/magic.h: TMPFS_MAGIC, RAMFS_MAGIC. Reads and writes there never wait for a device."""

_NOWAIT = os.RWF_NOWAIT

_libc = ctypes.CDLL("libc.so.6", use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
_libc.fstatfs.restype = ctypes.c_int


class Image:
    """An open image. Offsets and sizes are in bytes; reads and writes are whole or fail.

    Args:
        path: absolute path of a regular file or block device.
        writable: False opens it read-only, so that no bug above can write to it (XSA-142).
        shared: do not take the lock that keeps a second user out ("w!").

    Raises:
        ImageError: it is not there, is no file or block device, may not be opened so, or is in use.
    """

    def __init__(self, path: str, *, writable: bool, shared: bool = False) -> None:
        self.path = path
        self.writable = writable
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self.fd = os.open(path, flags)
        except OSError as error:
            raise ImageError(f"cannot open {path}: {error.strerror}", error.errno or errno.EIO) from error
        try:
            mode = os.fstat(self.fd).st_mode
            self.is_device = stat.S_ISBLK(mode)
            if not self.is_device and not stat.S_ISREG(mode):
                raise ImageError(f"{path} is neither a regular file nor a block device", errno.EINVAL)
            if not shared:
                self._lock()
            self.size_bytes = self._size()
            self.physical_sector_bytes = self._physical_sector()
            self.in_memory = self._is_in_memory()
            self.can_discard = writable and self._probe_discard()
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def sectors(self) -> int:
        """Whole sectors of 512 bytes."""
        return self.size_bytes // SECTOR

    def _lock(self) -> None:
        # The lock belongs to the open file, and the kernel holds it until the last I/O of a killed process is done.
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_EX if self.writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImageError(
                f"{self.path} is in use by another device or program; mode w! shares it all the same", errno.EBUSY
            ) from None

    def _size(self) -> int:
        if not self.is_device:
            return os.fstat(self.fd).st_size
        raw = fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8))
        return int.from_bytes(raw, "little")

    def _physical_sector(self) -> int:
        if not self.is_device:
            return SECTOR
        return int.from_bytes(fcntl.ioctl(self.fd, _BLKPBSZGET, bytes(4)), "little")

    def _is_in_memory(self) -> bool:
        buffer = (ctypes.c_long * 32)()  # struct statfs is 120 bytes on x86_64; f_type is its first word
        if self.is_device or _libc.fstatfs(self.fd, buffer) != 0:
            return False
        return buffer[0] & 0xFFFFFFFF in _MEMORY_FILESYSTEMS

    def _probe_discard(self) -> bool:
        """Whether discards work: sysfs knows it of a device; a file is asked behind its end, where it harms nothing."""
        if not self.is_device:
            return self._fallocate(self.size_bytes, 4096) == 0
        number = os.fstat(self.fd).st_rdev
        limit = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/discard_max_bytes")
        try:
            return int(limit.read_text()) > 0
        except (OSError, ValueError):
            return False

    def read(self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False) -> bool:
        """Fill `buffers`, `length` bytes together. With `nowait`, only if that needs no device: False if it does.

        Raises:
            OSError: reading failed, or the image has become shorter.
        Blocks: without `nowait`, for the device.
        """
        done = os.preadv(self.fd, buffers, offset, _NOWAIT if nowait else 0)
        if done != length:
            if nowait:
                return False
            self._finish(os.preadv, buffers, offset, done, length)
        return True

    def write(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """Write `buffers`, `length` bytes together.

        Raises:
            OSError
        Blocks: when the page cache is full of unwritten data.
        """
        done = os.pwritev(self.fd, buffers, offset)
        if done != length:
            self._finish(os.pwritev, buffers, offset, done, length)

    def _finish(self, call: object, buffers: Sequence[memoryview], offset: int, done: int, length: int) -> None:
        """Go on after a transfer that stopped short, as the kernel may."""
        while done < length:
            left, skip = [], done
            for buffer in buffers:
                if skip < len(buffer):
                    left.append(buffer[skip:])
                skip = max(0, skip - len(buffer))
            moved = call(self.fd, left, offset + done)  # type: ignore[operator]
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

    def discard(self, offset: int, length: int) -> None:
        """Forget a range; it reads as zeros afterwards in a file.

        Raises:
            OSError
        """
        if not length:
            return
        if self.is_device:
            fcntl.ioctl(self.fd, _BLKDISCARD, offset.to_bytes(8, "little") + length.to_bytes(8, "little"))
        elif code := self._fallocate(offset, length):
            raise OSError(code, os.strerror(code))

    def _fallocate(self, offset: int, length: int) -> int:
        while _libc.fallocate(self.fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
            if ctypes.get_errno() != errno.EINTR:
                return ctypes.get_errno()
        return 0

    def close(self) -> None:
        """Close the file, and with it give the lock back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
