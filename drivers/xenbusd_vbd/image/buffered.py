"""Serves a raw image through the page cache.

Jobs that need no device are done at once, in the caller's thread: all jobs on an image in memory, and reads that the
page cache can answer. The others go in one batch to a worker thread, which is started when it is first needed, and come
back to the event loop in batches. The worker does its jobs in order, so a flush covers every write submitted before it.

A sector size of 4096 inside needs nothing here: the page cache reads, modifies and writes whole blocks (T35).

Decision: D9.
"""

from __future__ import annotations

import asyncio
import errno
import os
from queue import SimpleQueue
from threading import Thread

from xenbusd_vbd.image.engine import Engine, Finished, Job
from xenbusd_vbd.image.raw import Image
from xenbusd_vbd.protocol import (
    DISCARD,
    DISCARD_SECURE,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    READ,
    SECTOR,
    WRITE,
    WRITE_BARRIER,
)

_CALLS = (os.preadv, os.pwritev)
"""READ and WRITE -> the system call behind `Image.read` and `Image.write`."""


class FileEngine(Engine):
    """Does jobs on one image.

    Args:
        image: open; closed by `close`.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self.writable = image.writable
        self.physical_sector_bytes = image.traits.physical_sector_bytes
        self.can_discard = image.can_discard
        self.discard_granularity = image.traits.discard_granularity
        self.discard_alignment = image.traits.discard_alignment
        self.can_discard_securely = self.can_discard and image.traits.secure_erase
        self._in_memory = image.traits.in_memory
        self.at_once_fd = image.fd if image.direct_fd < 0 else -1
        self.at_once_flags = 0 if self._in_memory else os.RWF_NOWAIT
        self.at_once_ops = (1 + self.writable) if self._in_memory else 1
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[tuple[list[Job], Finished] | None] = SimpleQueue()
        self._worker: Thread | None = None
        self._nowait = True

    @property
    def sectors(self) -> int:  # type: ignore[override]
        """Whole sectors of 512 bytes."""
        return self._image.sectors

    def submit(self, jobs: list[Job], finished: Finished) -> list[Job]:
        """See `Engine.submit`."""
        if self._in_memory:
            fd = self._image.fd
            for job in jobs:
                request = job.request
                op = request.op
                try:
                    if op <= WRITE and _CALLS[op](fd, job.buffers, request.sector * SECTOR) == request.sectors * SECTOR:
                        continue
                except OSError:  # `do` meets it again
                    pass
                self.do(job)
            return jobs
        done: list[Job] = []
        left: list[Job] = []
        for job in jobs:
            (done if job.request.op == READ and self._read_cached(job) else left).append(job)
        if left:
            self._to_worker(left, finished)
        return done

    def _to_worker(self, jobs: list[Job], finished: Finished) -> None:
        """Queue jobs for the worker, behind those that it already has."""
        if self._worker is None:
            self._worker = Thread(target=self._run_worker, name=f"image {self._image.path}", daemon=True)
            self._worker.start()
        self._work.put((jobs, finished))

    def _read_cached(self, job: Job) -> bool:
        """Read from the page cache; False if that takes the device, or fails: the worker then tries again."""
        if not self._nowait:
            return False
        try:
            request = job.request
            return self._image.read(job.buffers, request.sector * SECTOR, request.sectors * SECTOR, True)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._nowait = False
            return False

    def _run_worker(self) -> None:
        """The worker's thread: do one batch after another, until the batch is None."""
        while (batch := self._work.get()) is not None:
            jobs, finished = batch
            for job in jobs:
                self.do(job)
            self._loop.call_soon_threadsafe(finished, jobs)

    def do(self, job: Job) -> None:
        """Do one job from beginning to end, and set its `status`. Blocks for the device."""
        request, image = job.request, self._image
        op, offset, length = request.op, request.sector * SECTOR, request.sectors * SECTOR
        try:
            if op == READ:
                image.read(job.buffers, offset, length)
            elif op == DISCARD:
                image.discard(offset, length, secure=bool(request.flag & DISCARD_SECURE))
            else:
                if op in (FLUSH_DISKCACHE, WRITE_BARRIER):
                    image.flush()
                if length:
                    image.write(job.buffers, offset, length)
                if op == WRITE_BARRIER:
                    image.flush()
        except OSError as error:
            job.status = EOPNOTSUPP if error.errno == errno.EOPNOTSUPP else ERROR

    async def refresh(self) -> None:
        """See `Engine.refresh`."""
        self._image.refresh()

    async def close(self) -> None:
        """See `Engine.close`."""
        if self._worker is not None:
            self._work.put(None)
            await asyncio.to_thread(self._worker.join)
            self._worker = None
        self._image.close()
