"""The backend's data path: from a ring to the engine and back, a batch at a time, with no task for a request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from xenbusd.api import BackLink, BatchSize, Raw
from xenbusd_vbd.back.fast_path import FastPath
from xenbusd_vbd.back.limits import Limits
from xenbusd_vbd.back.pages import Pages
from xenbusd_vbd.image.engine import Engine, Job
from xenbusd_vbd.protocol import (
    ERROR,
    INDIRECT,
    OKAY,
    SECTOR,
    WRITE,
    WRITE_BARRIER,
    Abi,
    Request,
    answered_op,
    check,
    check_indirect,
    expand,
)

CHUNK = 8
"""Requests done before their answers are published: the frontend goes on with these while we do the next ones. With
whole runs of 32 instead, the two ends take turns, and a disk does half as many requests a second; with fewer, each
wakes the frontend for itself."""

CHUNK_BYTES = 256 << 10
"""Or as soon as so much data is moved: large requests take long, and a frontend has few of them under way."""

POLLS = 1000
"""Looks at the ring for another request before answers are published, where `BatchSize` expects one: some 20 us."""


class BlockServer:
    """Answers one ring's requests.

    Args:
        link: the connected ring.
        abi: its layout.
        engine: what is served, perhaps by several servers, one for each queue; None begins with a pause.
        pages: how the frontend's pages are reached.
        limits: for all queues of the disk together.
        indirect_segments: what was offered; 0 if nothing was.
        failed: called once, with the first request that the engine could not carry out.
    """

    def __init__(
        self,
        link: BackLink[Raw, Raw],
        abi: Abi,
        engine: Engine | None,
        pages: Pages,
        limits: Limits,
        *,
        indirect_segments: int = 0,
        failed: Callable[[Request], None] = lambda _: None,
    ) -> None:
        self._link = link
        self._ring = link.ring
        self._abi = abi
        self._engine = engine
        self._pages = pages
        self._limits = limits
        self._indirect_segments = indirect_segments
        self._fast = FastPath(abi, pages.cache, indirect_segments) if pages.cache is not None else None
        self._failed: Callable[[Request], None] | None = failed
        self._counters = link.counters
        self._pace = BatchSize(CHUNK)
        self._jobs: deque[Job] = deque()
        """Taken and not answered, in the order of the ring."""
        self._held: list[Request] = []
        """Taken and not begun: behind a barrier, for want of pages, to keep within the limits, or in a pause."""
        self._under_way = 0
        self._alone = False
        self._paused = engine is None
        self._timer: asyncio.TimerHandle | None = None
        self._stirred = asyncio.Event()

    def drain(self) -> bool:
        """Take requests, begin them, and publish what is answered. Return whether there may be more: a ring's worth at
        a time, and CHUNK that had to be looked for, so that other devices have their turn."""
        ring, pace, stride = self._ring, self._pace, self._abi.slot_bytes
        quick = self._fast_now()
        left, looks = ring.size, CHUNK
        gathered = moved = 0  # since answers were published
        while left > 0 and (looks or gathered):
            run, count = ring.take()
            if not count:
                if not gathered or not looks or quick is None or not pace.worth_waiting(gathered):
                    break
                looks -= 1
                if not ring.poll(POLLS):
                    break
                continue
            left -= count
            for first in range(0, count, CHUNK):
                size = min(CHUNK, count - first)
                if quick is not None:
                    answers, bytes_ = quick.answer(run, first, size)
                    ring.put_all(answers)
                    moved += bytes_
                    done = len(answers)
                else:
                    done = 0
                if done < size:
                    parse = self._abi.parse_request
                    chunk = [parse(run, at * stride) for at in range(first + done, first + size)]
                    if self._held or self._paused:
                        self._held += chunk
                    else:
                        self._begin(chunk)
                    quick = self._fast_now()
                gathered += size
                if gathered >= CHUNK or moved >= CHUNK_BYTES:
                    self._publish(gathered, moved)
                    gathered = moved = 0
        self._counters["requests"] += ring.size - left
        if gathered:
            self._publish(gathered, moved)
        return left <= 0

    def _publish(self, gathered: int, moved: int) -> None:
        self._counters["bytes"] += moved
        self._link.publish()
        self._pace.published(gathered)

    def _fast_now(self) -> FastPath | None:
        """The short way, if it may be taken: nobody is waited for, and the image needs no device."""
        quick, engine = self._fast, self._engine
        if quick is None or engine is None or engine.at_once_fd < 0 or self._jobs or self._held:
            return None
        if self._paused or self._limits.active or self._pages.full:
            return None
        quick.fd, quick.flags, quick.ops = engine.at_once_fd, engine.at_once_flags, engine.at_once_ops
        quick.sectors = engine.sectors
        return quick

    def _begin(self, requests: list[Request]) -> None:
        """Begin requests in order. Refuse those that may not be carried out; hold those that must wait."""
        for request in requests:
            if request.op == INDIRECT:
                requests = self._expand(requests)
                break
        engine = self._engine
        assert engine is not None, "nothing begins in a pause"
        capacity, read_only = engine.sectors, not engine.writable
        careful = self._alone or self._pages.full
        limited = self._limits.active
        accepted: list[Request] = []
        for position, request in enumerate(requests):
            op, _, sector, sectors, grefs, firsts, _, _ = request
            plain = op <= WRITE and grefs and not firsts and sector + sectors <= capacity and not (read_only and op)
            if plain and not careful and not limited:  # nearly all: spare them the rest
                accepted.append(request)
                continue
            status = check(request, capacity, read_only, engine.can_discard, engine.can_discard_securely)
            if status != OKAY:
                self._submit(accepted, engine)
                accepted = []
                self._refuse(request, status)
                continue
            alone = request.op == WRITE_BARRIER  # after everything before it, and before everything after it (T37)
            if alone or careful:
                self._submit(accepted, engine)
                accepted = []
                if self._under_way:
                    self._held += requests[position:]
                    break
                careful = self._alone = alone
            if limited and self._is_too_early(request):
                self._held += requests[position:]
                break
            accepted.append(request)
        self._submit(accepted, engine)
        self._answer()

    def _expand(self, requests: list[Request]) -> list[Request]:
        """Put in the place of indirect requests what they stand for; of one that cannot be, what will be refused."""
        sound = [
            request
            for request in requests
            if request.op == INDIRECT and check_indirect(request, self._indirect_segments) == OKAY
        ]
        tables = dict(zip(map(id, sound), self._pages.fetch(sound), strict=True))
        expanded = []
        for request in requests:
            table = tables.get(id(request))
            if table is not None:
                request = expand(request, table)
            elif id(request) in tables:
                request = Request(request.flag, request.id, request.sector, -1, (), (), ())
            expanded.append(request)
        return expanded

    def _is_too_early(self, request: Request) -> bool:
        """Whether a request must wait for its turn within the limits; if not, it has had it."""
        loop = asyncio.get_running_loop()
        delay_s = self._limits.delay_s(loop.time())
        if delay_s:
            self._timer = loop.call_later(delay_s, self._go_on)
            return True
        self._limits.charge(request.sectors * SECTOR if request.grefs else 0)
        return False

    def _submit(self, requests: list[Request], engine: Engine) -> None:
        if not requests:
            return
        jobs, lost = self._pages.begin(requests)
        ready = [job for job in jobs if job.status == OKAY] if lost else jobs
        done = engine.submit(ready, self._finish)
        self._note_failure(done)
        if len(done) == len(ready) and not self._jobs:  # nobody is waited for
            self._pages.finish(jobs)
            self._put(jobs)
            return
        self._jobs.extend(jobs)
        self._under_way += len(jobs)
        self._complete(done + lost if lost else done)

    def _refuse(self, request: Request, status: int) -> None:
        if request.op == INDIRECT:
            status = check_indirect(request, self._indirect_segments)
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
        jobs, done = self._jobs, []
        while jobs and jobs[0].done:
            done.append(jobs.popleft())
        if done:
            self._put(done)

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

    def _finish(self, jobs: list[Job]) -> None:
        """The engine has done jobs: answer them, and go on with what was held."""
        self._note_failure(jobs)
        self._complete(jobs)
        self._answer()
        if self._held and not self._under_way:
            self._go_on()
        else:
            self._link.publish()
        if not self._under_way:
            self._stirred.set()

    def _note_failure(self, jobs: list[Job]) -> None:
        """Tell of the first request that the engine could not carry out."""
        if self._failed is not None:
            for job in jobs:
                if job.status == ERROR:
                    self._failed(job.request)
                    self._failed = None
                    return

    def _go_on(self) -> None:
        """Begin what was held, as far as that may begin now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._paused:
            held, self._held = self._held, []
            self._begin(held)
        self._link.publish()
        self._stirred.set()

    # -- what the backend calls ------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Begin nothing more, and return once nothing is under way. The engine may be closed then."""
        self._paused = True
        while self._under_way:
            self._stirred.clear()
            await self._stirred.wait()

    def resume(self, engine: Engine) -> None:
        """Go on, with this engine."""
        self._engine = engine
        self._paused = False
        self._go_on()

    def limits_changed(self) -> None:
        """What waits for its turn may have it sooner now."""
        if self._timer is not None:
            self._go_on()

    async def finish(self, *, stopping: bool = False) -> None:
        """Answer everything taken from the ring, then give the pages back. What a pause holds gets ERROR.

        Args:
            stopping: the daemon ends, and another one goes on with the ring: what is not begun stays in it.
        """
        self._limits = Limits()
        if stopping:
            self._paused = True
            self._held = []
        elif self._paused:
            held, self._held = self._held, []
            for request in held:
                self._refuse(request, ERROR)
            self._answer()
            self._link.publish()
        else:
            self._go_on()
        while self._under_way or (self._held and not stopping):
            self._stirred.clear()
            await self._stirred.wait()
        self._pages.close()
