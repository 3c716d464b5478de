"""Jobs past the page cache: by the kernel where blocks are whole, alone where they are not."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from xenbusd_vbd.image import direct as direct_engine
from xenbusd_vbd.image.aio import Transfer
from xenbusd_vbd.image.direct import DirectEngine
from xenbusd_vbd.image.engine import Job
from xenbusd_vbd.image.raw import Image
from xenbusd_vbd.protocol import DISCARD, ERROR, FLUSH_DISKCACHE, OKAY, READ, WRITE, WRITE_BARRIER, Request

BLOCK = 4096
BLOCKS = 64


def contents() -> bytes:
    """What is in the image."""
    return random.Random(3).randbytes(BLOCKS * BLOCK)


def job(op: int, sector: int, data: bytes | int = b"") -> Job:
    """A job on memory of its own, page-aligned: with data, or of so many bytes."""
    size = data if isinstance(data, int) else len(data)
    if not size:
        return Job(Request(op, 1, sector, 0, (), (), ()), [])
    buffer = memoryview(mmap.mmap(-1, -(-size // BLOCK) * BLOCK))[:size]
    if isinstance(data, bytes):
        buffer[:] = data
    return Job(Request(op, 1, sector, size // 512, (1,), (), ()), [buffer])


class Bench:
    """An engine, and the jobs that it has finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image = Image(str(path), writable=True, direct=True)
        self.engine = DirectEngine(self.image)
        self.done: list[Job] = []
        self._stirred = asyncio.Event()

    def finished(self, jobs: list[Job]) -> None:
        """Take note."""
        self.done += jobs
        self._stirred.set()

    async def run(self, *jobs: Job) -> list[int]:
        """Do jobs, and return their statuses."""
        count = len(self.done) + len(jobs)
        assert self.engine.submit(list(jobs), self.finished) == []
        await self.until(count)
        return [job.status for job in jobs]

    async def until(self, count: int) -> None:
        """Wait until so many have come back."""
        async with asyncio.timeout(60):
            while len(self.done) < count:
                self._stirred.clear()
                await self._stirred.wait()


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """An engine on an image whose blocks are of 4096 bytes, as far as it knows."""
    path = tmp_path / "disk.img"
    path.write_bytes(contents())
    os.sync()
    bench = Bench(path)
    if bench.image.direct_fd < 0:
        bench.image.close()
        pytest.skip("the file system of the temporary folder has no direct I/O")
    monkeypatch.setattr(bench.image, "traits", _with_blocks_of(bench.image, BLOCK))
    yield bench
    await bench.engine.close()


def _with_blocks_of(image: Image, size: int) -> object:
    from dataclasses import replace

    return replace(image.traits, logical_block_bytes=size)


async def test_reads_and_writes(bench: Bench) -> None:
    """Whole blocks, many at once: each job gets its own data, and the file holds what was written."""
    reads = [job(READ, 8 * n, BLOCK) for n in range(BLOCKS)]
    assert set(await bench.run(*reads)) == {OKAY}
    assert b"".join(bytes(read.buffers[0]) for read in reads) == contents()
    new = random.Random(4).randbytes(4 * BLOCK)
    assert await bench.run(job(WRITE, 16, new), job(WRITE, 80, b"x" * BLOCK)) == [OKAY, OKAY]
    assert await bench.run(job(FLUSH_DISKCACHE, 0)) == [OKAY]
    now = bench.path.read_bytes()
    assert now[2 * BLOCK : 6 * BLOCK] == new
    assert now[10 * BLOCK : 11 * BLOCK] == b"x" * BLOCK
    assert now[: 2 * BLOCK] + now[6 * BLOCK : 10 * BLOCK] + now[11 * BLOCK :] == (
        contents()[: 2 * BLOCK] + contents()[6 * BLOCK : 10 * BLOCK] + contents()[11 * BLOCK :]
    )


async def test_parts_of_blocks(bench: Bench) -> None:
    """T35: sectors of 512 bytes on blocks of 4096: what is around them in their block stays, though a whole block is
    written beside it, before and after, at the same time."""
    jobs = [
        job(WRITE, 8, b"a" * BLOCK),
        job(WRITE, 17, b"b" * 512),
        job(WRITE, 24, b"c" * BLOCK),
        job(WRITE, 18, b"d" * 1024),
        job(READ, 15, 1024),
    ]
    assert await bench.run(*jobs) == [OKAY] * 5
    was = contents()
    expected = b"a" * BLOCK + was[16 * 512 : 17 * 512] + b"b" * 512 + b"d" * 1024 + was[20 * 512 : 24 * 512]
    assert bench.path.read_bytes()[BLOCK : 4 * BLOCK] == expected + b"c" * BLOCK
    assert bytes(jobs[4].buffers[0]) == b"a" * 512 + was[16 * 512 : 17 * 512]
    direct = job(READ, 16, BLOCK)
    assert await bench.run(direct) == [OKAY]
    assert bytes(direct.buffers[0]) == expected[BLOCK:]


async def test_a_part_of_a_block_goes_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is written, nothing else is under way on the disk: before it all is done, and what comes waits."""
    seen: list[tuple[int, bool]] = []
    do = bench.engine.do

    def spy(job: Job) -> None:
        seen.append((len(bench.engine._transfers), bench.engine._alone))
        do(job)

    monkeypatch.setattr(bench.engine, "do", spy)
    submit = bench.engine._aio.submit

    def checked(transfers: list[Transfer]) -> int:
        assert not bench.engine._alone
        return submit(transfers)

    monkeypatch.setattr(bench.engine._aio, "submit", checked)
    jobs = [job(WRITE, 8 * n + (n % 3 == 0), b"z" * (512 if n % 3 == 0 else BLOCK)) for n in range(24)]
    assert set(await bench.run(*jobs)) == {OKAY}
    assert [entry for entry in seen if entry[1]] == [(0, True)] * 8


async def test_barriers_discards_and_empty_flushes(bench: Bench) -> None:
    """A worker does the operations that the kernel's queue cannot do."""
    assert await bench.run(job(WRITE_BARRIER, 8, b"b" * BLOCK)) == [OKAY]
    assert await bench.run(Job(Request(DISCARD, 1, 16, 8, (), (), ()), [])) == [OKAY]
    now = bench.path.read_bytes()
    assert now[BLOCK : 3 * BLOCK] == b"b" * BLOCK + bytes(BLOCK)


async def test_behind_the_end(bench: Bench) -> None:
    """An image that has become shorter: what is behind its end is ERROR, and nothing else suffers."""
    os.truncate(bench.path, 32 * BLOCK)
    assert await bench.run(job(READ, 8 * 31, 2 * BLOCK), job(READ, 8 * 40, BLOCK), job(READ, 0, BLOCK)) == [
        ERROR,
        ERROR,
        OKAY,
    ]


async def test_a_queue_that_takes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the kernel refuses is done all the same."""

    def refuse(_: object) -> int:
        raise OSError(errno.EAGAIN, "no room")

    monkeypatch.setattr(bench.engine._aio, "submit", refuse)
    read = job(READ, 8, BLOCK)
    assert await bench.run(read, job(WRITE, 0, b"w" * BLOCK)) == [OKAY, OKAY]
    assert bytes(read.buffers[0]) == contents()[BLOCK : 2 * BLOCK]
    assert bench.path.read_bytes()[:BLOCK] == b"w" * BLOCK


async def test_more_than_the_queue_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest waits for room, and all is done."""
    monkeypatch.setattr(direct_engine, "DEPTH", 4)
    path = tmp_path / "disk.img"
    path.write_bytes(contents())
    os.sync()
    bench = Bench(path)
    if bench.image.direct_fd < 0:
        pytest.skip("the file system of the temporary folder has no direct I/O")
    reads = [job(READ, 8 * n, BLOCK) for n in range(BLOCKS)]
    assert set(await bench.run(*reads)) == {OKAY}
    assert b"".join(bytes(read.buffers[0]) for read in reads) == contents()
    await bench.engine.close()
