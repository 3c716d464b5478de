"""How a backend reaches the frontend's data pages: by keeping them mapped, or by copying.

Persistent grants (T36) are mapped once and kept, as many as Linux keeps; the least recently used go first. Without
them each batch's data is copied by the hypervisor to and from pages of our own, so that nothing of the frontend's is
mapped when it sees the response: blkfront gives up a disk whose grant is still in use then.

Source: xen/include/public/io/blkif.h (feature-persistent); Linux, drivers/block/xen-blkback/blkback.c.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from mmap import mmap

from xenbusd.api import PAGE_SIZE, Copy, Domid, GrantError, Grants, Gref, Mapping
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

    @property
    def full(self) -> bool:
        """Whether no request should begin before all under way are finished: too much is mapped."""
        return False

    @abstractmethod
    def fetch(self, requests: list[Request]) -> list[bytes | None]:
        """Copy the descriptors of indirect requests to private bytes; None for one whose pages cannot be had."""

    @abstractmethod
    def begin(self, requests: list[Request]) -> tuple[list[Job], list[Job]]:
        """Make jobs: buffers for each request, with the data of writes in them.

        Returns:
            All jobs; and those of them whose grants could not be had, which have failed already, and harm no other
            (XSA-361).
        """

    @abstractmethod
    def finish(self, jobs: list[Job]) -> None:
        """Deliver the data of reads, before their responses are published."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. No job may be under way."""


class PersistentPages(Pages):
    """Grants stay mapped.

    Args:
        grants: the door.
        domid: the frontend's domain.
        limit: pages kept between batches.
    """

    def __init__(self, grants: Grants, domid: Domid, limit: int = PERSISTENT_MAX) -> None:
        self._grants = grants
        self._domid = domid
        self._limit = limit
        self.mapped: dict[int, memoryview] = {}
        """What is mapped now, by reference."""
        self.used: deque[tuple[int, ...]] = deque(maxlen=limit)
        """The references of the latest requests, the newest last: as many as could keep everything in use."""
        self._mappings: dict[int, Mapping] = {}
        self._in_use = 0

    def __len__(self) -> int:
        return len(self.mapped)

    @property
    def full(self) -> bool:
        return len(self.mapped) > self._limit

    def fetch(self, requests: list[Request]) -> list[bytes | None]:
        tables: list[bytes | None] = []
        for request in requests:
            left = request.sectors
            table = b""
            try:
                for page in self._views(request.grefs):
                    count = min(left, SEGMENTS_PER_INDIRECT)
                    table += bytes(page[: count * SEGMENT_BYTES])
                    left -= count
                tables.append(table)
            except GrantError:
                tables.append(None)
        return tables

    def begin(self, requests: list[Request]) -> tuple[list[Job], list[Job]]:
        jobs, lost = [], []
        views = self._views
        for request in requests:
            try:
                buffers = views(request.grefs)
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

    def _views(self, grefs: tuple[int, ...]) -> list[memoryview]:
        """The pages of these references, mapped if they are not yet.

        Raises:
            GrantError: one of them cannot be; those before it stay mapped.
        """
        mapped = self.mapped
        self.used.append(grefs)
        try:
            return [mapped[gref] for gref in grefs]
        except KeyError:
            return [mapped[gref] if gref in mapped else self._map(gref) for gref in grefs]

    def _map(self, gref: int) -> memoryview:
        mapping = self._grants.map(self._domid, [Gref(gref)])
        self._mappings[gref] = mapping
        self.mapped[gref] = mapping.view
        return mapping.view

    def finish(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.buffers = []
        self._in_use -= len(jobs)
        if len(self.mapped) > self._limit and not self._in_use:
            self._shrink()

    def _shrink(self) -> None:
        """Drop the least recently used pages; the frontend may grant others for ever."""
        keep: set[int] = set()
        for grefs in reversed(self.used):
            if len(keep) + len(grefs) > self._limit:
                break
            keep.update(grefs)
        for gref in [gref for gref in self.mapped if gref not in keep][: len(self.mapped) - self._limit]:
            del self.mapped[gref]
            self._mappings.pop(gref).unmap()

    def close(self) -> None:
        self._limit = 0
        self.used.clear()
        self._shrink()


class CopiedPages(Pages):
    """Data is copied to and from buffers of our own, a whole batch in one call.

    Args:
        grants: the door.
        domid: the frontend's domain.
    """

    def __init__(self, grants: Grants, domid: Domid) -> None:
        self._grants = grants
        self._domid = domid
        self._free: dict[int, list[memoryview]] = {}
        """Buffers that no job has, by size."""
        self._taken: dict[Job, memoryview] = {}

    def fetch(self, requests: list[Request]) -> list[bytes | None]:
        tables = [bytearray(request.sectors * SEGMENT_BYTES) for request in requests]
        segments, owners = [], []
        for number, (request, table) in enumerate(zip(requests, tables, strict=True)):
            view = memoryview(table)
            for page, gref in enumerate(request.grefs):
                part = view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
                segments.append(Copy(False, self._domid, Gref(gref), 0, part))
                owners.append(number)
        failed = {owner for owner, result in zip(owners, self._results(segments), strict=True) if result}
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
        segments, owners = [], []
        for job in jobs:
            at = 0
            for gref, first, last in job.request.segments():
                length = (last - first + 1) * SECTOR
                local = job.buffers[0][at : at + length]
                segments.append(Copy(to_grant, self._domid, Gref(gref), first * SECTOR, local))
                owners.append(job)
                at += length
        for job, result in zip(owners, self._results(segments), strict=True):
            if result:
                job.status = ERROR

    def _results(self, segments: list[Copy]) -> list[int]:
        """Have segments copied; a status for each."""
        if not segments:
            return []
        try:
            return self._grants.copy(segments)
        except GrantError:
            return [-1] * len(segments)

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
LARGE_BYTES = INDIRECT_SEGMENTS_MAX * PAGE_SIZE
"""The two sizes of a buffer: for a request in a slot, and for an indirect one."""
