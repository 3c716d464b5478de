"""A block server on a ring, with an engine and pages that do what a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.doubles.ring_pair import FakeLink, RingPair
from xenbusd_vbd.back.limits import Limits
from xenbusd_vbd.back.pages import Pages
from xenbusd_vbd.back.server import BlockServer
from xenbusd_vbd.image.engine import Engine, Finished, Job
from xenbusd_vbd.protocol import (
    DISCARD,
    ERROR,
    FLUSH_DISKCACHE,
    OKAY,
    X86_64,
    Request,
)

SECTORS = 1 << 20


class SlowEngine(Engine):
    """Keeps each job until the test says that it is done; jobs whose op is in `at_once` are done within `submit`."""

    physical_sector_bytes = 512
    discard_granularity = 4096
    discard_alignment = 0
    can_discard_securely = False

    def __init__(self, *, writable: bool = True) -> None:
        self.sectors = SECTORS
        self.writable = self.can_discard = writable
        self.at_once: set[int] = set()
        self.finished: Finished = lambda _: None
        self.begun: list[int] = []
        self.jobs: dict[int, Job] = {}
        self.closed = False

    def submit(self, jobs: list[Job], finished: Finished) -> list[Job]:
        """Begin jobs."""
        self.finished = finished
        self.begun += [job.request.id for job in jobs]
        self.jobs |= {job.request.id: job for job in jobs if job.request.op not in self.at_once}
        return [job for job in jobs if job.request.op in self.at_once]

    def finish(self, *ids: int, status: int = OKAY) -> None:
        """Finish these jobs, or all, as one batch."""
        jobs = [self.jobs.pop(id) for id in ids or list(self.jobs)]
        for job in jobs:
            job.status = status
        self.finished(jobs)

    async def refresh(self) -> None:
        """Nothing changes."""

    async def close(self) -> None:
        """End."""
        assert not self.jobs
        self.closed = True


class FakePages(Pages):
    """Pages of which some cannot be mapped; checks that each job is begun and finished once."""

    def __init__(self) -> None:
        self.missing: set[int] = set()
        """Grant references that fail."""
        self.tables: dict[tuple[int, ...], bytes] = {}
        """Descriptors, by the pages that they are in."""
        self.is_full = False
        self.under_way: list[Job] = []
        self.finishing: Callable[[], None] = lambda: None
        """Called within `finish`."""
        self.closed = False

    @property
    def full(self) -> bool:
        """The test's choice."""
        return self.is_full

    def fetch(self, requests: list[Request]) -> list[bytes | None]:
        """The descriptors that the test has put there."""
        return [self.tables.get(request.grefs) for request in requests]

    def begin(self, requests: list[Request]) -> tuple[list[Job], list[Job]]:
        """Make jobs without buffers."""
        jobs = [Job(request, []) for request in requests]
        for job in jobs:
            if self.missing & set(job.request.grefs):
                job.status = ERROR
        self.under_way += jobs
        return jobs, [job for job in jobs if job.status != OKAY]

    def finish(self, jobs: list[Job]) -> None:
        """Let go of jobs."""
        self.finishing()
        for job in jobs:
            self.under_way.remove(job)

    def close(self) -> None:
        """End."""
        assert not self.under_way
        self.closed = True


class Bench:
    """A server on a ring, with an engine that waits for the test; requests have the ids 0, 1, 2 and so on."""

    def __init__(self, *, indirect_segments: int = 0, **engine: bool) -> None:
        self.pair = RingPair()
        self.link = FakeLink(self.pair.back)
        link: Any = self.link
        self.pages = FakePages()
        self.engine = SlowEngine(**engine)
        self.limits = Limits()
        self.failures: list[Request] = []
        self.server = BlockServer(
            link,
            X86_64,
            self.engine,
            self.pages,
            self.limits,
            indirect_segments=indirect_segments,
            failed=self.failures.append,
        )
        self.asked: list[int] = []

    def slot(self, op: int) -> bytes:
        """The next request: one page, but for a flush; the grant reference is 100 more than the id."""
        id = len(self.asked)
        self.asked.append(op)
        if op == DISCARD:
            return X86_64.pack_discard(id, 0, 8)
        if op == FLUSH_DISKCACHE:
            return X86_64.pack_request(op, id, 0, (), 0)
        return X86_64.pack_request(op, id, id * 8, (100 + id,), 8)

    def ask(self, *ops: int) -> None:
        """Publish requests, and have the server drain the ring."""
        self.pair.ask(*map(self.slot, ops))
        while self.server.drain():
            pass

    def answered(self) -> list[int]:
        """The ids of the answers received so far; checks that each carries the op of its request."""
        answers = self.pair.answers()
        assert all(answer.op == self.asked[answer.id] for answer in answers)
        return [answer.id for answer in answers]
