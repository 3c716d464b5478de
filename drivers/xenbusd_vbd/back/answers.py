"""The answers of one ring, in the order of its requests.

The engine finishes jobs in any order; each is answered in its turn. That is what the ring's journal relies on: when the
daemon is killed, the slots from `rsp_prod` on still hold the requests without an answer, and the next daemon carries
them out again (`connect_queues(journal=InOrder())`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping

from xenbusd.api import BackRing
from xenbusd_vbd.back.pages import Pages
from xenbusd_vbd.image.engine import Job
from xenbusd_vbd.protocol import OKAY, SECTOR, Abi, Request, answered_op


class Answers:
    """Keeps the jobs that have no answer yet, and puts their answers into the ring. The caller publishes them.

    Args:
        ring: the backend's end.
        abi: its layout.
        pages: finished with a job before its answer is put.
        counters: of the ring's queue; "bytes" and "errors" are counted here.
    """

    __slots__ = ("_abi", "_counters", "_pages", "_ring", "jobs", "under_way")

    def __init__(self, ring: BackRing, abi: Abi, pages: Pages, counters: MutableMapping[str, int]) -> None:
        self._ring = ring
        self._abi = abi
        self._pages = pages
        self._counters = counters
        self.jobs: deque[Job] = deque()
        """Jobs begun or refused, and not yet answered, in the order of the ring."""
        self.under_way = 0
        """How many of them are neither done nor refused."""

    def expect(self, jobs: list[Job]) -> None:
        """Queue jobs that have begun."""
        self.jobs.extend(jobs)
        self.under_way += len(jobs)

    def refuse(self, request: Request, status: int) -> None:
        """Queue the answer to a request that is not carried out."""
        job = Job(request._replace(op=answered_op(request)), [])
        job.status, job.done = status, True
        self.jobs.append(job)

    def complete(self, jobs: list[Job]) -> None:
        """Record that queued jobs are done: deliver their data, and release the frontend's pages."""
        if jobs:
            self._pages.finish(jobs)
            self.under_way -= len(jobs)
            for job in jobs:
                job.done = True

    def put_ready(self) -> None:
        """Answer the jobs at the head of the queue that are done."""
        jobs, ready = self.jobs, []
        while jobs and jobs[0].done:
            ready.append(jobs.popleft())
        if ready:
            self._put(ready)

    def put_at_once(self, jobs: list[Job]) -> None:
        """Answer jobs that were done as soon as they were begun; no job may be queued before them."""
        self._pages.finish(jobs)
        self._put(jobs)

    def _put(self, jobs: list[Job]) -> None:
        put, pack = self._ring.put, self._abi.pack_response
        sectors = errors = 0
        for job in jobs:
            request, status = job.request, job.status
            put(pack(request.id, request.op, status))
            if status == OKAY:
                sectors += request.sectors
            else:
                errors += 1
        self._counters["bytes"] += sectors * SECTOR
        self._counters["errors"] += errors
