"""The disk that an NBD export serves, as the export sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

ReadDone = Callable[[int, Sequence[memoryview]], None]
"""Called once for a read with (errno, pieces): 0 and the data in order, or a positive errno and no pieces.

The pieces together are exactly as long as the read, and belong to the caller only until this call returns.
"""

Done = Callable[[int], None]
"""Called once for any other request with 0 or a positive errno."""


class Disk(Protocol):
    """A disk that takes requests without waiting.

    Each method returns at once. Its `done` is called exactly once, from the event loop's thread, either before the
    method returns or later, and in any order among requests. Offsets and lengths are in bytes, are multiples of
    `block_size`, and lie within what was `size_bytes` once: the export has refused everything else. A length may
    exceed what the disk can do at once; the disk splits it. Failures arrive through `done`; a method that raises has a
    bug.
    """

    @property
    def size_bytes(self) -> int:
        """The disk's size: a multiple of `block_size`. It may change; `NbdExport.refresh` is called then."""

    @property
    def read_only(self) -> bool:
        """Whether `write` and `trim` are never called."""

    @property
    def can_flush(self) -> bool:
        """Whether `flush`, and `fua` on a write, are understood."""

    @property
    def can_trim(self) -> bool:
        """Whether `trim` is understood."""

    @property
    def block_size(self) -> int:
        """The smallest unit of offset and length, in bytes: 512, or 4096 for instance."""

    @property
    def preferred_size(self) -> int:
        """The smallest request, in bytes, that is done without a detour: a power of two, 4096 for instance."""

    @property
    def kind(self) -> str:
        """The kind of disk, in words for people: "disk", "CD-ROM"."""

    def read(self, offset: int, length: int, done: ReadDone) -> None:
        """Read `length` bytes from `offset`."""

    def write(self, offset: int, data: memoryview, fua: bool, done: Done) -> None:
        """Write `data` at `offset`; with `fua`, be done only once it is on stable storage.

        The caller leaves `data` unchanged until `done`, and may use it for something else afterwards.
        """

    def flush(self, done: Done) -> None:
        """Put every write whose `done` was called on stable storage."""

    def trim(self, offset: int, length: int, done: Done) -> None:
        """Discard the range's contents."""
