"""The backend's data path: from the ring to the image and back, a batch at a time, with no task for a request."""

from __future__ import annotations

import asyncio
from collections import deque

from xenbusd.api import BackLink, Raw
from xenbusd_vbd.engine import Engine, Job
from xenbusd_vbd.image import Image
from xenbusd_vbd.pages import Pages
from xenbusd_vbd.protocol import OKAY, SECTOR, WRITE_BARRIER, Abi, Request, answered_op, check

CHUNK = 8
"""Requests done before their answers are published: the frontend goes on with these while we do the next ones. With
whole runs of 32 instead, the two ends take turns, and a disk does half as many requests a second."""


class BlockServer:
    """Answers one ring's requests.

    Args:
        link: the connected ring.
        abi: its layout.
        image: what is served.
        pages: how the frontend's pages are reached.
    """

    def __init__(self, link: BackLink[Raw, Raw], abi: Abi, image: Image, pages: Pages) -> None:
        self._link = link
        self._ring = link.ring
        self._abi = abi
        self._image = image
        self._pages = pages
        self._engine = Engine(image, self._finish)
        self._counters = link.counters
        self._jobs: deque[Job] = deque()
        """Taken and not answered, in the order of the ring."""
        self._held: deque[Request] = deque()
        """Taken and not begun: they wait behind a barrier, or for pages."""
        self._under_way = 0
        self._alone = False
        self._idle = asyncio.Event()

    def drain(self) -> bool:
        """Take a run of requests, begin them, and publish what is answered. Return whether there may be more."""
        run, count = self._ring.take()
        if not count:
            return False
        parse, stride = self._abi.parse_request, self._abi.slot_bytes
        requests = [parse(run, start) for start in range(0, count * stride, stride)]
        self._counters["requests"] += count
        for first in range(0, count, CHUNK):
            chunk = requests[first : first + CHUNK]
            if self._held:
                self._held.extend(chunk)
            else:
                self._begin(chunk)
                self._link.publish()
        return True

    def _begin(self, requests: list[Request]) -> None:
        """Begin requests in order. Refuse those that may not be carried out; hold those that must wait."""
        capacity, read_only, discard = self._image.sectors, not self._image.writable, self._image.can_discard
        careful = self._alone or self._pages.full
        accepted: list[Request] = []
        for position, request in enumerate(requests):
            status = check(request, capacity, read_only, discard)
            alone = request.op == WRITE_BARRIER  # after everything before it, and before everything after it (T37)
            if status != OKAY or alone or careful:
                self._submit(accepted)
                accepted = []
                if status != OKAY:
                    self._refuse(request, status)
                    continue
                if self._under_way:
                    self._held.extend(requests[position:])
                    break
                careful = self._alone = alone
            accepted.append(request)
        self._submit(accepted)
        self._answer()

    def _submit(self, requests: list[Request]) -> None:
        if not requests:
            return
        jobs = self._pages.begin(requests)
        self._jobs.extend(jobs)
        self._under_way += len(jobs)
        ready = [job for job in jobs if job.status == OKAY]  # the others' grants could not be had
        done = self._engine.submit(ready)
        if len(ready) != len(jobs):
            done = done + [job for job in jobs if job not in ready]
        self._complete(done)

    def _refuse(self, request: Request, status: int) -> None:
        job = Job(request._replace(op=answered_op(request)), [])
        job.status, job.done = status, True
        self._jobs.append(job)

    def _complete(self, jobs: list[Job]) -> None:
        """Take note that jobs are done: their data delivered, and nothing left mapped that should not be."""
        if jobs:
            self._pages.finish(jobs)
            self._under_way -= len(jobs)
            for job in jobs:
                job.done = True

    def _answer(self) -> None:
        """Answer what is done, in the order of the requests: so a ring can be gone on with after we were killed. The
        caller publishes."""
        put, pack, jobs = self._ring.put, self._abi.pack_response, self._jobs
        sectors = errors = 0
        while jobs and jobs[0].done:
            job = jobs.popleft()
            request, status = job.request, job.status
            put(pack(request.id, request.op, status))
            if status == OKAY:
                sectors += request.sectors
            else:
                errors += 1
        self._counters["bytes"] += sectors * SECTOR
        self._counters["errors"] += errors

    def _finish(self, jobs: list[Job]) -> None:
        """The engine's worker has done jobs: answer them, and go on with what was held."""
        self._complete(jobs)
        self._answer()
        if self._held and not self._under_way:
            held = list(self._held)
            self._held.clear()
            self._begin(held)
        self._link.publish()
        if not self._under_way:
            self._idle.set()

    async def finish(self) -> None:
        """Wait until everything taken from the ring is answered, then give the pages back."""
        while self._under_way or self._held:
            self._idle.clear()
            await self._idle.wait()
        await self._engine.close()
        self._pages.close()
