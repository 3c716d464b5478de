"""Serves a raw image past the page cache: O_DIRECT, by the kernel's asynchronous I/O.

A transfer that is not aligned to the image's blocks goes through the page cache, which reads, modifies and writes whole
blocks (T35). Nothing else is under way meanwhile: a block that is written both ways at once could lose sectors.

Decisions: D13, D14.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from xenbusd_vbd.image.aio import FDSYNC, PREADV, PWRITEV, Aio, Transfer
from xenbusd_vbd.image.buffered import FileEngine
from xenbusd_vbd.image.engine import Finished, Job
from xenbusd_vbd.image.raw import Image
from xenbusd_vbd.protocol import ERROR, FLUSH_DISKCACHE, READ, SECTOR, WRITE

DEPTH = 256
"""Most operations of one disk under way in the kernel."""

WORKERS = 8
"""Most threads for operations that must wait before they can begin, such as writes into holes."""

_OPS = {READ: PREADV, WRITE: PWRITEV, FLUSH_DISKCACHE: FDSYNC}


class DirectEngine(FileEngine):
    """Does jobs on one image that has a `direct_fd`.

    Args:
        image: open; closed by `close`.

    Raises:
        OSError: the kernel has no asynchronous I/O for us.
    """

    def __init__(self, image: Image) -> None:
        super().__init__(image)
        self._aio = Aio(DEPTH)
        self._workers = ThreadPoolExecutor(WORKERS, f"image {image.path}")
        self._line: deque[tuple[Job, Finished]] = deque()
        """Jobs submitted and not yet begun."""
        self._transfers: dict[int, tuple[Job, Finished]] = {}
        self._last_key = 0
        self._with_worker = 0
        self._alone = False
        self._loop.add_reader(self._aio.fd, self._reap)

    def submit(self, jobs: list[Job], finished: Finished) -> list[Job]:
        """See `Engine.submit`."""
        self._line.extend((job, finished) for job in jobs)
        self._pump()
        return []

    def _pump(self) -> None:
        """Begin the jobs that may begin, in order."""
        line, batch = self._line, list[tuple[Job, Finished]]()
        room = self._aio.depth - len(self._transfers)
        while line and room and not self._alone:
            job, finished = line[0]
            request = job.request
            alone = bool(job.buffers) and not self._image.is_aligned(
                job.buffers, request.sector * SECTOR, request.sectors * SECTOR
            )
            if alone and (self._transfers or batch or self._with_worker):
                break
            line.popleft()
            if alone or request.op not in _OPS or (request.op == FLUSH_DISKCACHE and request.sectors):
                self._alone = alone
                self._hand_over(job, finished)
            else:
                batch.append((job, finished))
                room -= 1
        if batch:
            self._begin(batch)

    def _begin(self, batch: list[tuple[Job, Finished]]) -> None:
        transfers = []
        for entry in batch:
            request = entry[0].request
            self._last_key += 1
            self._transfers[self._last_key] = entry
            offset = 0 if request.op == FLUSH_DISKCACHE else request.sector * SECTOR
            transfers.append(
                Transfer(_OPS[request.op], self._image.direct_fd, entry[0].buffers, offset, self._last_key)
            )
        begun = 0
        while begun < len(transfers):
            try:
                begun += self._aio.submit(transfers[begun:])
            except OSError:  # a worker meets the error again, or does the job for which the kernel had no room
                break
        for transfer in transfers[begun:]:
            self._hand_over(*self._transfers.pop(transfer.key))

    def _hand_over(self, job: Job, finished: Finished) -> None:
        """Give one job to a worker."""
        self._with_worker += 1

        def done() -> None:
            self._with_worker -= 1
            self._alone = False
            finished([job])
            self._pump()

        def work() -> None:
            self.do(job)
            self._loop.call_soon_threadsafe(done)

        self._workers.submit(work)

    def _reap(self) -> None:
        """Finish the operations that the kernel has done, in one batch for each queue of the disk."""
        groups: dict[Finished, list[Job]] = {}
        for key, result in self._aio.reap():
            job, finished = self._transfers.pop(key)
            length = 0 if job.request.op == FLUSH_DISKCACHE else job.request.sectors * SECTOR
            if result == length:
                groups.setdefault(finished, []).append(job)
            elif result in (-errno.EAGAIN, -errno.EOPNOTSUPP) or result >= 0:
                self._hand_over(job, finished)  # it would have to wait, or stopped short
            else:
                job.status = ERROR
                groups.setdefault(finished, []).append(job)
        for finished, jobs in groups.items():
            finished(jobs)
        self._pump()

    async def close(self) -> None:
        """See `Engine.close`."""
        self._loop.remove_reader(self._aio.fd)
        self._aio.close()
        await asyncio.to_thread(self._workers.shutdown)
        await super().close()
