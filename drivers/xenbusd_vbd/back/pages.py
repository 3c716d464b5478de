"""How a backend reaches the frontend's data pages: by keeping them mapped, or by copying.

Persistent grants (T36) are mapped once and kept, as many as Linux keeps. Without them each batch's data is copied by
the hypervisor to and from pages of our own, so that nothing of the frontend's is mapped when it sees the response:
blkfront gives up a disk whose grant is still in use then.

Source: xen/include/public/io/blkif.h (feature-persistent); Linux, drivers/block/xen-blkback/blkback.c.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from mmap import mmap

from xenbusd.api import PAGE_SIZE, CopyBatch, Domid, GrantCache, GrantError, Grants
from xenbusd_vbd.image.engine import Job
from xenbusd_vbd.protocol import (
    ERROR,
    INDIRECT_SEGMENTS_MAX,
    OKAY,
    READ,
    REQUEST_BYTES_MAX,
    SECTOR,
    SEGMENT_BYTES,
    SEGMENTS_PER_INDIRECT,
    Request,
)

PERSISTENT_MAX = 1056
"""Pages kept mapped for one device: Linux' xen_blkif_max_pgrants."""


class Pages(ABC):
    """Gives buffers to requests."""

    cache: GrantCache | None = None
    """The pages that stay mapped, for `FastPath`; None if none do."""

    @property
    def full(self) -> bool:
        """Whether too many pages are mapped: then no request may begin before all under way are finished."""
        return False

    @abstractmethod
    def fetch(self, requests: list[Request]) -> list[bytes | None]:
        """Copy the descriptors of indirect requests (T31) to private bytes; None for a request if that fails."""

    @abstractmethod
    def begin(self, requests: list[Request]) -> tuple[list[Job], list[Job]]:
        """Make jobs: buffers for each request, with the data of writes in them.

        Returns:
            All jobs; and those of them whose grants could not be used: their status is ERROR, and no other job is
            affected (XSA-361).
        """

    @abstractmethod
    def finish(self, jobs: list[Job]) -> None:
        """Deliver the data of reads and let go of the jobs' buffers, before their responses are published."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. No job may be under way."""


class PersistentPages(Pages):
    """Grants stay mapped.

    Args:
        grants: the grant tables.
        domid: the frontend's domain.
        limit: pages that stay mapped between batches.
    """

    cache: GrantCache

    def __init__(self, grants: Grants, domid: Domid, limit: int = PERSISTENT_MAX) -> None:
        self.cache = GrantCache(grants, domid, limit)
        self._in_use = 0
        """Jobs begun and not finished."""

    @property
    def full(self) -> bool:
        return self.cache.over_limit

    def fetch(self, requests: list[Request]) -> list[bytes | None]:
        tables: list[bytes | None] = []
        for request in requests:
            left = request.sectors
            table = b""
            try:
                for page in self.cache.pages(request.grefs):
                    count = min(left, SEGMENTS_PER_INDIRECT)
                    table += bytes(page[: count * SEGMENT_BYTES])
                    left -= count
                tables.append(table)
            except GrantError:
                tables.append(None)
        return tables

    def begin(self, requests: list[Request]) -> tuple[list[Job], list[Job]]:
        jobs, lost = [], []
        pages = self.cache.pages
        for request in requests:
            try:
                buffers = pages(request.grefs)
                if request.firsts:
                    parts = zip(buffers, request.firsts, request.lasts, strict=True)
                    buffers = [page[first * SECTOR : (last + 1) * SECTOR] for page, first, last in parts]
                jobs.append(Job(request, buffers))
            except GrantError:
                failed = Job(request, [])
                failed.status = ERROR
                jobs.append(failed)
                lost.append(failed)
        self._in_use += len(jobs)
        return jobs, lost

    def finish(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.buffers = []
        self._in_use -= len(jobs)
        if self.cache.over_limit and not self._in_use:
            self.cache.trim()

    def close(self) -> None:
        self.cache.close()


class CopiedPages(Pages):
    """Data is copied to and from buffers of our own, a whole batch in one call.

    Args:
        grants: the grant tables.
        domid: the frontend's domain.
    """

    def __init__(self, grants: Grants, domid: Domid) -> None:
        self._grants = grants
        self._domid = domid
        self._free: dict[int, list[memoryview]] = {}
        """Free buffers, by size."""
        self._taken: dict[Job, memoryview] = {}

    def fetch(self, requests: list[Request]) -> list[bytes | None]:
        batch: CopyBatch[int] = CopyBatch(self._grants, self._domid)
        tables = [bytearray(request.sectors * SEGMENT_BYTES) for request in requests]
        for number, (request, table) in enumerate(zip(requests, tables, strict=True)):
            view = memoryview(table)
            for page, gref in enumerate(request.grefs):
                batch.add(number, gref, 0, view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE], to_grant=False)
        failed = set(batch.run())
        return [None if number in failed else bytes(table) for number, table in enumerate(tables)]

    def begin(self, requests: list[Request]) -> tuple[list[Job], list[Job]]:
        jobs = [self._with_buffers(request) for request in requests]
        self._copy([job for job in jobs if job.request.op != READ], to_grant=False)
        return jobs, [job for job in jobs if job.status != OKAY]

    def _with_buffers(self, request: Request) -> Job:
        job = Job(request, [])
        if request.grefs:
            size = SMALL_BYTES if request.sectors * SECTOR <= SMALL_BYTES else LARGE_BYTES
            free = self._free.setdefault(size, [])
            buffer = free.pop() if free else memoryview(mmap(-1, size))
            self._taken[job] = buffer
            job.buffers.append(buffer[: request.sectors * SECTOR])
        return job

    def _copy(self, jobs: list[Job], *, to_grant: bool) -> None:
        """Copy the jobs' data to or from the frontend's pages; a job whose page cannot be copied gets ERROR."""
        batch: CopyBatch[Job] = CopyBatch(self._grants, self._domid)
        add = batch.add
        for job in jobs:
            at = 0
            for gref, first, last in job.request.segments():
                length = (last - first + 1) * SECTOR
                add(job, gref, first * SECTOR, job.buffers[0][at : at + length], to_grant=to_grant)
                at += length
        for job in batch.run():
            job.status = ERROR

    def finish(self, jobs: list[Job]) -> None:
        self._copy([job for job in jobs if job.request.op == READ and job.status == OKAY], to_grant=True)
        for job in jobs:
            job.buffers = []
            buffer = self._taken.pop(job, None)
            if buffer is not None:
                self._free[len(buffer)].append(buffer)

    def close(self) -> None:
        self._free.clear()


def _round_up(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE


SMALL_BYTES = _round_up(REQUEST_BYTES_MAX)
"""Size of the buffer of a request whose segments fit its slot."""
LARGE_BYTES = INDIRECT_SEGMENTS_MAX * PAGE_SIZE
"""Size of the buffer of an indirect request."""
