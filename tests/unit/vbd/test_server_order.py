"""What the block server may do side by side, and what it must keep in order."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from xenbusd.ids import PAGE_SIZE
from xenbusd.ring.shared import BackRing, FrontRing
from xenbusd_vbd import server
from xenbusd_vbd.engine import Job
from xenbusd_vbd.pages import Pages
from xenbusd_vbd.protocol import READ, WRITE_BARRIER, X86_64, Request


class SlowEngine:
    """Keeps each job until the test says that it is done."""

    def __init__(self, image: object, finished: Callable[[list[Job]], None]) -> None:
        del image
        self.begun: list[int] = []
        self.jobs: list[Job] = []
        self.finished = finished

    def submit(self, jobs: list[Job]) -> list[Job]:
        self.begun += [job.request.id for job in jobs]
        self.jobs += jobs
        return []

    def finish_all(self) -> None:
        """Everything that was begun is done."""
        jobs, self.jobs = self.jobs, []
        self.finished(jobs)


class NoPages(Pages):
    """Requests without data."""

    def begin(self, requests: list[Request]) -> list[Job]:
        return [Job(request, []) for request in requests]

    def finish(self, jobs: list[Job]) -> None:
        assert jobs

    def close(self) -> None:
        return


async def serve(monkeypatch: pytest.MonkeyPatch) -> tuple[FrontRing, server.BlockServer, SlowEngine]:
    """A server on a ring in memory, with an engine that waits."""
    memory = memoryview(bytearray(PAGE_SIZE))
    front, back = FrontRing(memory, X86_64.slot_bytes), BackRing(memory, X86_64.slot_bytes)
    monkeypatch.setattr(server, "Engine", SlowEngine)
    link: Any = SimpleNamespace(ring=back, counters={"requests": 0, "bytes": 0, "errors": 0}, publish=back.publish)
    image: Any = SimpleNamespace(sectors=1 << 20, writable=True, can_discard=False)
    blocks = server.BlockServer(link, X86_64, image, NoPages())
    engine: Any = blocks._engine
    return front, blocks, engine


def ask(front: FrontRing, ops: list[int]) -> None:
    """Put one-page requests with the ids 0, 1, 2 ... into the ring."""
    for id, op in enumerate(ops):
        front.put(X86_64.pack_request(op, id, id * 8, (100 + id,), 8))
    front.publish()


def answered(front: FrontRing) -> list[int]:
    """The ids of the answers that have come."""
    run, count = front.take()
    return [X86_64.parse_response(run, at * X86_64.slot_bytes)[0] for at in range(count)]


async def test_a_barrier_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """T37: a barrier begins when all before it are done, and what comes after it when it is done, in this chunk of the
    run and in the chunks behind it."""
    front, blocks, engine = await serve(monkeypatch)
    ask(front, [READ] * 3 + [WRITE_BARRIER] + [READ] * (2 * server.CHUNK))
    assert blocks.drain()
    assert engine.begun == [0, 1, 2]
    engine.finish_all()
    assert engine.begun == [0, 1, 2, 3]
    assert answered(front) == [0, 1, 2]
    engine.finish_all()
    assert engine.begun == list(range(4 + 2 * server.CHUNK))
    engine.finish_all()
    assert answered(front) == list(range(3, 4 + 2 * server.CHUNK))


async def test_reads_are_begun_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run is under way at once; each is answered once, and `finish` waits for all."""
    front, blocks, engine = await serve(monkeypatch)
    ask(front, [READ] * 32)
    assert blocks.drain()
    assert not blocks.drain()
    assert engine.begun == list(range(32))
    assert answered(front) == []
    engine.finish_all()
    assert sorted(answered(front)) == list(range(32))
    assert answered(front) == []
