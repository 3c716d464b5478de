"""How a backend reaches the frontend's data pages: by keeping them mapped, or by copying.

Persistent grants (T36) are mapped once and kept, as many as Linux keeps; the least recently used go first. Without
them each batch's data is copied by the hypervisor to and from pages of our own, so that nothing of the frontend's is
mapped when it sees the response: blkfront gives up a disk whose grant is still in use then.

Source: xen/include/public/io/blkif.h (feature-persistent); Linux, drivers/block/xen-blkback/blkback.c.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from mmap import mmap

from xenbusd.api import PAGE_SIZE, Copy, Domid, GrantError, Grants, Gref, Mapping
from xenbusd_vbd.engine import Job
from xenbusd_vbd.protocol import ERROR, OKAY, READ, REQUEST_BYTES_MAX, SECTOR, SECTORS_PER_PAGE, Request

PERSISTENT_MAX = 1056
"""Pages kept mapped for one device: Linux' xen_blkif_max_pgrants."""


class Pages(ABC):
    """Gives buffers to requests."""

    @property
    def full(self) -> bool:
        """Whether no request should begin before all under way are finished: too much is mapped."""
        return False

    @abstractmethod
    def begin(self, requests: list[Request]) -> list[Job]:
        """Make jobs: buffers for each request, with the data of writes in them. A request whose grants cannot be had
        becomes a job that has failed already, and harms no other (XSA-361)."""

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
        self._mapped: OrderedDict[int, tuple[memoryview, Mapping]] = OrderedDict()
        self._in_use = 0

    def __len__(self) -> int:
        return len(self._mapped)

    @property
    def full(self) -> bool:
        return len(self._mapped) > self._limit

    def begin(self, requests: list[Request]) -> list[Job]:
        mapped = self._mapped
        jobs = []
        for request in requests:
            job = Job(request, [])
            jobs.append(job)
            buffers = job.buffers
            try:
                for gref, first, last in zip(request.grefs, request.firsts, request.lasts, strict=True):
                    if gref in mapped:
                        page = mapped[gref][0]
                        mapped.move_to_end(gref)
                    else:
                        page = self._map(gref)
                    buffers.append(page if last - first == SECTORS_PER_PAGE - 1 else _cut(page, first, last))
            except GrantError:
                job.status = ERROR
                buffers.clear()
        self._in_use += len(jobs)
        return jobs

    def _map(self, gref: int) -> memoryview:
        mapping = self._grants.map(self._domid, [Gref(gref)])
        self._mapped[gref] = mapping.view, mapping
        return mapping.view

    def finish(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.buffers = []
        self._in_use -= len(jobs)
        if len(self._mapped) > self._limit and not self._in_use:
            self._shrink()

    def _shrink(self) -> None:
        """Drop the least recently used pages; the frontend may grant others for ever."""
        while len(self._mapped) > self._limit:
            _, (_, mapping) = self._mapped.popitem(last=False)
            mapping.unmap()

    def close(self) -> None:
        self._limit = 0
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
        self._free: list[memoryview] = []
        self._taken: dict[Job, memoryview] = {}

    def begin(self, requests: list[Request]) -> list[Job]:
        jobs = [self._with_buffers(request) for request in requests]
        self._copy([job for job in jobs if job.request.op != READ], to_grant=False)
        return jobs

    def _with_buffers(self, request: Request) -> Job:
        job = Job(request, [])
        if request.grefs:
            buffer = self._free.pop() if self._free else memoryview(mmap(-1, _round_up(REQUEST_BYTES_MAX)))
            self._taken[job] = buffer
            at = 0
            for first, last in zip(request.firsts, request.lasts, strict=True):
                length = (last - first + 1) * SECTOR
                job.buffers.append(buffer[at : at + length])
                at += length
        return job

    def _copy(self, jobs: list[Job], *, to_grant: bool) -> None:
        segments, owners = [], []
        for job in jobs:
            for gref, first, buffer in zip(job.request.grefs, job.request.firsts, job.buffers, strict=True):
                segments.append(Copy(to_grant, self._domid, Gref(gref), first * SECTOR, buffer))
                owners.append(job)
        if not segments:
            return
        try:
            results = self._grants.copy(segments)
        except GrantError:
            results = [-1] * len(segments)
        for job, result in zip(owners, results, strict=True):
            if result:
                job.status = ERROR

    def finish(self, jobs: list[Job]) -> None:
        self._copy([job for job in jobs if job.request.op == READ and job.status == OKAY], to_grant=True)
        for job in jobs:
            job.buffers = []
            buffer = self._taken.pop(job, None)
            if buffer is not None:
                self._free.append(buffer)

    def close(self) -> None:
        self._free.clear()


def _cut(page: memoryview, first: int, last: int) -> memoryview:
    return page[first * SECTOR : (last + 1) * SECTOR]


def _round_up(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE
