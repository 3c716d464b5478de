"""The backend's data path: from a ring to the engine and back, a batch at a time, with no task for a request.

A batch goes one of two ways. `FastPath` does the plain requests in one loop. For the others a request becomes a job:
`Gate` says whether it may begin, `Pages` give it buffers, the engine carries it out, now or later, and `Answers` puts
the jobs' answers in the order of the ring. The fast path is open only while no job is without an answer, so the order
is kept.

Answers are published in batches, see `xenbusd.ring.batching`.

Decisions: D10, D42.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xenbusd.api import BackLink, BatchSize, Raw
from xenbusd_vbd.back.answers import Answers
from xenbusd_vbd.back.fast_path import FastPath
from xenbusd_vbd.back.gate import Gate
from xenbusd_vbd.back.limits import Limits
from xenbusd_vbd.back.pages import Pages
from xenbusd_vbd.image.engine import Engine, Job
from xenbusd_vbd.protocol import ERROR, INDIRECT, OKAY, WRITE, Abi, Request, check, check_indirect, expand

CHUNK = 8
"""Requests that are done before their answers are published: the frontend then works on these while the backend does
the next ones. With whole runs of 32 the two ends take turns instead, and a disk does half as many requests a second;
with fewer, the frontend is notified more often."""

CHUNK_BYTES = 256 << 10
"""Bytes moved after which answers are published, even if they are fewer than CHUNK: large requests take long, and a
frontend has few of them under way."""


class BlockServer:
    """Answers one ring's requests.

    Args:
        link: the connected ring.
        abi: its layout.
        engine: what is served, perhaps by several servers, one for each queue; None begins with a pause.
        pages: how the frontend's pages are reached.
        limits: for all queues of the disk together.
        indirect_segments: the most that were offered in one request; 0 if none.
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
        self._indirect_segments = indirect_segments
        self._failed: Callable[[Request], None] | None = failed
        self._counters = link.counters
        self._fast = FastPath(abi, pages.cache, indirect_segments) if pages.cache is not None else None
        self._gate = Gate(pages, limits, self._resume_held, paused=engine is None)
        self._answers = Answers(link.ring, abi, pages, link.counters)
        self._batch = BatchSize(CHUNK)
        self._gathered = self._moved = 0
        """Requests served, and bytes moved on the fast path, since answers were published."""
        self._progress = asyncio.Event()
        """Set when jobs are done or held requests have begun."""

    def drain(self) -> bool:
        """Take requests, begin them, and publish their answers.

        Returns:
            True if more may be waiting. To be fair to other devices, one call takes at most one ring's worth of
            requests, at most CHUNK of them found by polling.
        """
        ring, fast = self._ring, self._open_fast_path()
        left, polls = ring.size, CHUNK
        while left > 0 and (polls or self._gathered):
            run, count = ring.take()
            if count:
                left -= count
                fast = self._serve(run, count, fast)
            elif polls and fast is not None and self._batch.worth_waiting(self._gathered) and ring.poll():
                polls -= 1
            else:
                break
        self._counters["requests"] += ring.size - left
        self._publish()
        return left <= 0

    def _serve(self, run: bytes, count: int, fast: FastPath | None) -> FastPath | None:
        """Serve a run of requests, a chunk at a time. Return the fast path if it is still open."""
        for first in range(0, count, CHUNK):
            size = min(CHUNK, count - first)
            done = 0
            if fast is not None:
                answers, moved = fast.answer(run, first, size)
                self._ring.put_all(answers)
                self._moved += moved
                done = len(answers)
            if done < size:
                self._begin_slots(run, first + done, size - done)
                fast = self._open_fast_path()
            self._gathered += size
            if self._gathered >= CHUNK or self._moved >= CHUNK_BYTES:
                self._publish()
        return fast

    def _publish(self) -> None:
        """Publish the answers gathered so far."""
        if self._gathered:
            self._counters["bytes"] += self._moved
            self._link.publish()
            self._batch.published(self._gathered)
            self._gathered = self._moved = 0

    def _open_fast_path(self) -> FastPath | None:
        """The fast path, if it may be taken: the image needs no device, and no earlier request is without an answer."""
        fast, engine = self._fast, self._engine
        if fast is None or engine is None or engine.at_once_fd < 0 or self._answers.jobs or not self._gate.is_open:
            return None
        fast.fd, fast.flags, fast.ops = engine.at_once_fd, engine.at_once_flags, engine.at_once_ops
        fast.sectors = engine.sectors
        return fast

    def _begin_slots(self, run: bytes, first: int, count: int) -> None:
        """Parse the requests of some slots, and begin them, or hold them behind those that are held."""
        parse, stride, gate = self._abi.parse_request, self._abi.slot_bytes, self._gate
        requests = [parse(run, at * stride) for at in range(first, first + count)]
        if gate.held or gate.paused:
            gate.held += requests
        else:
            self._begin(requests)

    def _begin(self, requests: list[Request]) -> None:
        """Begin requests in order; refuse those that cannot be carried out, and hold those that must wait."""
        engine, gate, answers = self._engine, self._gate, self._answers
        assert engine is not None, "nothing begins in a pause"
        capacity, read_only = engine.sectors, not engine.writable
        for request in requests:
            if request.op == INDIRECT:
                requests = self._expand(requests)
                break
        strict = gate.begin_batch()
        batch: list[Request] = []
        for position, request in enumerate(requests):
            op, _, sector, sectors, grefs, firsts, _, _ = request
            plain = op <= WRITE and grefs and not firsts and sector + sectors <= capacity and not (read_only and op)
            if plain and not strict:  # nearly all: spare them the rest
                batch.append(request)
                continue
            status = self._check(request, engine)
            if status != OKAY:
                self._submit(batch, engine)
                batch = []
                answers.refuse(request, status)
                continue
            if gate.needs_quiet(request):
                self._submit(batch, engine)  # which may be done at once
                batch = []
            if not gate.admit(request, answers.under_way):
                gate.held += requests[position:]
                break
            strict = gate.is_strict
            batch.append(request)
        self._submit(batch, engine)
        answers.put_ready()

    def _expand(self, requests: list[Request]) -> list[Request]:
        """Put each indirect request's inner request in its place. One that is not sound, or whose descriptors cannot be
        copied, stays as it is, to be refused in its turn; the latter without its pages, so that they are not tried
        again.
        """
        offered = self._indirect_segments
        indirect = [
            position
            for position, request in enumerate(requests)
            if request.op == INDIRECT and request.grefs and check_indirect(request, offered) == OKAY
        ]
        expanded = list(requests)
        tables = self._pages.fetch([requests[position] for position in indirect])
        for position, table in zip(indirect, tables, strict=True):
            request = requests[position]
            expanded[position] = request._replace(grefs=()) if table is None else expand(request, table)
        return expanded

    def _check(self, request: Request, engine: Engine) -> int:
        """Return OKAY, or the status that a request is refused with."""
        if request.op == INDIRECT:
            return check_indirect(request, self._indirect_segments) or ERROR  # sound, but without its descriptors
        return check(request, engine.sectors, not engine.writable, engine.can_discard, engine.can_discard_securely)

    def _submit(self, requests: list[Request], engine: Engine) -> None:
        """Have the engine carry out requests that were admitted."""
        if not requests:
            return
        answers = self._answers
        jobs, lost = self._pages.begin(requests)
        ready = [job for job in jobs if job.status == OKAY] if lost else jobs
        done = engine.submit(ready, self._finished)
        self._report_failure(done)
        if len(done) == len(ready) and not answers.jobs:
            answers.put_at_once(jobs)
        else:
            answers.expect(jobs)
            answers.complete(done + lost if lost else done)

    def _finished(self, jobs: list[Job]) -> None:
        """Answer jobs that the engine has done, and begin held requests."""
        answers = self._answers
        self._report_failure(jobs)
        answers.complete(jobs)
        answers.put_ready()
        if self._gate.held and not answers.under_way:
            self._resume_held()
        else:
            self._link.publish()
        if not answers.under_way:
            self._progress.set()

    def _report_failure(self, jobs: list[Job]) -> None:
        """Call `failed` with the first request that the engine could not carry out."""
        if self._failed is not None:
            for job in jobs:
                if job.status == ERROR:
                    self._failed(job.request)
                    self._failed = None
                    return

    def _resume_held(self) -> None:
        """Begin the held requests that may begin now."""
        if not self._gate.paused:
            self._begin(self._gate.release())
        self._link.publish()
        self._progress.set()

    # -- what the backend calls ------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Begin nothing more, and return once nothing is under way. The engine may be closed then."""
        self._gate.paused = True
        while self._answers.under_way:
            await self._next_progress()

    def resume(self, engine: Engine) -> None:
        """End the pause: begin the held requests, with this engine."""
        self._engine = engine
        self._gate.paused = False
        self._resume_held()

    def limits_changed(self) -> None:
        """Begin requests that were held for the limits, as far as the new ones allow."""
        if self._gate.is_timed:
            self._resume_held()

    async def finish(self, *, stopping: bool = False) -> None:
        """Answer everything taken from the ring, then give the pages back. Requests that a pause holds get ERROR.

        Args:
            stopping: the daemon ends, and the next one adopts the ring: requests that have not begun stay in it.
        """
        gate, answers = self._gate, self._answers
        gate.lift_limits()
        if stopping:
            gate.paused = True
            gate.release()
        elif gate.paused:
            for request in gate.release():
                answers.refuse(request, ERROR)
            answers.put_ready()
            self._link.publish()
        else:
            self._resume_held()
        while answers.under_way or (gate.held and not stopping):
            await self._next_progress()
        self._pages.close()

    async def _next_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()
