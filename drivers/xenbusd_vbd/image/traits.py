"""The size, blocks and abilities of a raw image or device. Its contents are never read to find them (XSA-258).

Source: linux/fs.h (BLKGETSIZE64, BLKSSZGET, BLKPBSZGET, BLKSECDISCARD), linux/magic.h,
Documentation/ABI/stable/sysfs-block (queue/discard_*).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from xenbusd.api import ResourceError
from xenbusd_vbd.protocol import SECTOR

_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKPBSZGET = 0x127B
BLKSECDISCARD = 0x127D

_BEHIND_ANY_END = (1 << 62).to_bytes(8, "little") + SECTOR.to_bytes(8, "little")
"""A range behind the end of any device."""

_MEMORY_FILESYSTEMS = frozenset({0x01021994, 0x858458F6})
"""TMPFS_MAGIC, RAMFS_MAGIC. Reads and writes there never wait for a device."""

_NETWORK_FILESYSTEMS = frozenset({0x6969, 0xFF534D42, 0xFE534D42, 0x00C36400, 0x01021997, 0x65735546, 0x5346414F})
"""NFS, CIFS, SMB2, Ceph, 9p, FUSE, AFS: a page may still be read for sending after its write is done."""

_libc = ctypes.CDLL("libc.so.6", use_errno=True)
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
_libc.fstatfs.restype = ctypes.c_int


@dataclass(frozen=True)
class Traits:
    """All facts about an open target except its size, which may change."""

    is_device: bool
    logical_block_bytes: int
    """Direct I/O goes in multiples of it."""
    physical_sector_bytes: int
    in_memory: bool
    on_network: bool
    discard_granularity: int
    discard_alignment: int
    discards: bool
    """For a device. Whether a file can discard is tried by `Image`, if it may write."""
    secure_erase: bool


def inspect(fd: int, path: str) -> Traits:
    """Find out an open target's traits.

    Raises:
        ResourceError: it is neither a regular file nor a block device.
    Blocks: for some reads of sysfs.
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return _device(fd, status.st_rdev)
    if not stat.S_ISREG(status.st_mode):
        raise ResourceError(f"{path} is neither a regular file nor a block device", errno.EINVAL)
    kind = _file_system(fd)
    queue = _queue(_folder(status.st_dev))  # of the device below; absent for a file system on several devices
    return Traits(
        is_device=False,
        logical_block_bytes=_number(queue / "logical_block_size") or 4096,
        physical_sector_bytes=_number(queue / "physical_block_size") or SECTOR,
        in_memory=kind in _MEMORY_FILESYSTEMS,
        on_network=kind in _NETWORK_FILESYSTEMS,
        discard_granularity=4096,
        discard_alignment=0,
        discards=False,
        secure_erase=False,
    )


def size_bytes(fd: int, is_device: bool) -> int:
    """How large a target is now."""
    if not is_device:
        return os.fstat(fd).st_size
    return int.from_bytes(fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)), "little")


def _device(fd: int, number: int) -> Traits:
    folder = _folder(number)
    queue = _queue(folder)
    logical = int.from_bytes(fcntl.ioctl(fd, _BLKSSZGET, bytes(4)), "little")
    return Traits(
        is_device=True,
        logical_block_bytes=logical,
        physical_sector_bytes=int.from_bytes(fcntl.ioctl(fd, _BLKPBSZGET, bytes(4)), "little"),
        in_memory=False,
        on_network=False,
        discard_granularity=_number(queue / "discard_granularity") or logical,
        discard_alignment=_number(folder / "discard_alignment"),
        discards=_number(queue / "discard_max_bytes") > 0,
        secure_erase=_erases_securely(fd),
    )


def _folder(number: int) -> Path:
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()


def _queue(folder: Path) -> Path:
    """The folder with a device's limits; a partition has those of its disk."""
    return (folder.parent if (folder / "partition").exists() else folder) / "queue"


def _erases_securely(fd: int) -> bool:
    """Linux refuses a range that no device has by EINVAL if the device erases securely, and by another error if not."""
    try:
        fcntl.ioctl(fd, BLKSECDISCARD, _BEHIND_ANY_END)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _file_system(fd: int) -> int:
    buffer = (ctypes.c_long * 32)()  # struct statfs is 120 bytes on x86_64; f_type is its first word
    return buffer[0] & 0xFFFFFFFF if _libc.fstatfs(fd, buffer) == 0 else 0
