"""Carries out jobs on an image, in batches, without ever making the event loop wait for a device.

What needs no device is done at once, in the caller's thread: everything on an image in memory, and reads that the page
cache can answer. The rest goes, as one batch, to one worker thread, which exists only once it has been needed; what it
has done comes back to the event loop in batches too. One worker does its jobs in order, so a flush covers every write
that was submitted before it.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from xenbusd_vbd.image import Image
from xenbusd_vbd.protocol import DISCARD, EOPNOTSUPP, ERROR, FLUSH_DISKCACHE, OKAY, READ, SECTOR, WRITE_BARRIER, Request


class Job:
    """One request on its way.

    Args:
        request: as parsed and checked.
        buffers: where its data goes to or comes from: one view for each segment.
    """

    __slots__ = ("buffers", "done", "request", "status")

    def __init__(self, request: Request, buffers: list[memoryview]) -> None:
        self.request = request
        self.buffers = buffers
        self.status = OKAY
        """What to answer: OKAY, ERROR or EOPNOTSUPP."""
        self.done = False
        """Whether `status` is final, and what belongs to it has been delivered."""


class Engine:
    """Does jobs on one image.

    Args:
        image: open; closed by its owner after `close`.
        finished: called on the event loop with jobs that were not done within `submit`.
    """

    def __init__(self, image: Image, finished: Callable[[list[Job]], None]) -> None:
        self._image = image
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._worker: Thread | None = None
        self._nowait = True

    def submit(self, jobs: list[Job]) -> list[Job]:
        """Begin jobs, and return those that are done already. Never waits for a device."""
        if self._image.in_memory:
            for job in jobs:
                self._do(job)
            return jobs
        done: list[Job] = []
        left: list[Job] = []
        for job in jobs:
            (done if job.request.op == READ and self._read_cached(job) else left).append(job)
        if left:
            if self._worker is None:
                self._worker = Thread(target=self._labour, name=f"image {self._image.path}", daemon=True)
                self._worker.start()
            self._work.put(left)
        return done

    def _read_cached(self, job: Job) -> bool:
        """Read what the page cache holds; False if it takes the device, or an error that the worker will meet again."""
        if not self._nowait:
            return False
        try:
            request = job.request
            return self._image.read(job.buffers, request.sector * SECTOR, request.sectors * SECTOR, True)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._nowait = False
            return False

    def _labour(self) -> None:
        """The worker: a batch at a time, until it gets None."""
        while (jobs := self._work.get()) is not None:
            for job in jobs:
                self._do(job)
            self._loop.call_soon_threadsafe(self._finished, jobs)

    def _do(self, job: Job) -> None:
        request, image = job.request, self._image
        op, offset, length = request.op, request.sector * SECTOR, request.sectors * SECTOR
        try:
            if op == READ:
                image.read(job.buffers, offset, length)
            elif op == DISCARD:
                image.discard(offset, length)
            else:
                if op in (FLUSH_DISKCACHE, WRITE_BARRIER):
                    image.flush()
                if length:
                    image.write(job.buffers, offset, length)
                if op == WRITE_BARRIER:
                    image.flush()
        except OSError as error:
            job.status = EOPNOTSUPP if error.errno == errno.EOPNOTSUPP else ERROR

    async def close(self) -> None:
        """End the worker. Every job must be done."""
        if self._worker is not None:
            self._work.put(None)
            await asyncio.to_thread(self._worker.join)
            self._worker = None
