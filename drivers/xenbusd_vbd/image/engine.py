"""The engine of a disk: carries out the requests of all its queues, without making the event loop wait."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from xenbusd_vbd.protocol import OKAY, Request


class Job:
    """One request under way.

    Args:
        request: as parsed and checked.
        buffers: memory that its data is read into or written from: in order, together as long as the request.
    """

    __slots__ = ("buffers", "done", "request", "status")

    def __init__(self, request: Request, buffers: list[memoryview]) -> None:
        self.request = request
        self.buffers = buffers
        self.status = OKAY
        """The answer to the guest: OKAY, ERROR or EOPNOTSUPP."""
        self.done = False
        """Whether `status` is final, and the data of a read has been delivered."""


Finished = Callable[[list[Job]], None]
"""Called on the event loop with jobs that were not done within `submit`, in batches."""


class Engine(ABC):
    """Carries out jobs on one image."""

    sectors: int
    """Capacity in 512 bytes; `refresh` may find more."""
    writable: bool
    physical_sector_bytes: int
    can_discard: bool
    discard_granularity: int
    """Bytes; smaller discards may free nothing."""
    discard_alignment: int
    """Bytes from the start of the disk to the first whole granule."""
    can_discard_securely: bool
    is_without_server: bool = False
    """Whether the image server has gone: jobs wait, or fail, until there is another."""
    at_once_fd: int = -1
    """A descriptor on which preadv and pwritev with `at_once_flags` never wait for a device, so that a caller may do
    operations below `at_once_ops` itself (1: READ; 2: READ and WRITE). -1 if there is none."""
    at_once_flags: int = 0
    at_once_ops: int = 0

    @abstractmethod
    def submit(self, jobs: list[Job], finished: Finished) -> list[Job]:
        """Begin jobs; set the `status` of those that fail.

        A flush covers every write that is done by now. A barrier flushes, writes and flushes; its caller lets nothing
        else be under way meanwhile.

        Returns:
            The jobs that are done already; the others come to `finished`.
        """

    @abstractmethod
    async def refresh(self) -> None:
        """Find out the size again, and set `sectors`.

        Raises:
            ResourceError: the size cannot be determined.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of the image. Every job must be done. Idempotent."""
