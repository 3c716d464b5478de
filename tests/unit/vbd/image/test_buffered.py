"""Jobs on an image: at once where no device is waited for, else by one worker, in order."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Sequence

import pytest

from tests.doubles.fake_image import FakeImage
from xenbusd_vbd.image.buffered import FileEngine
from xenbusd_vbd.image.engine import Job
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    WRITE,
    WRITE_BARRIER,
    Request,
)


def job(op: int, sector: int = 0, data: bytes = b"") -> Job:
    """A job with one buffer, which holds `data`; a discard is as long as its data, too."""
    segment = bool(data)
    sectors = len(data) // 512
    request = Request(op, 1, sector, sectors, (1,) * segment, (0,) * segment, (sectors - 1,) * segment)
    return Job(request, [memoryview(bytearray(data))] if segment else [])


class Bench:
    """An engine, and the jobs that it has finished."""

    def __init__(self, image: FakeImage) -> None:
        self.image = image
        self.engine = FileEngine(image)
        self.batches: list[list[Job]] = []
        self.finished_in: set[int] = set()
        self._finished_some = asyncio.Event()

    def _finished(self, jobs: list[Job]) -> None:
        self.batches.append(jobs)
        self.finished_in.add(threading.get_ident())
        self._finished_some.set()

    def submit(self, jobs: list[Job]) -> list[Job]:
        """Begin jobs."""
        return self.engine.submit(jobs, self._finished)

    async def until(self, batches: int) -> None:
        """Wait until that many batches have come back."""
        async with asyncio.timeout(60):
            while len(self.batches) < batches:
                self._finished_some.clear()
                await self._finished_some.wait()

    async def run(self, *jobs: Job) -> None:
        """Do jobs that go to the worker."""
        assert self.submit(list(jobs)) == []
        await self.until(len(self.batches) + 1)


DATA = b"w" * 1024

WHAT_EACH_DOES = pytest.mark.parametrize(
    ("op", "data", "calls"),
    [
        pytest.param(READ, DATA, [("read", 2048, 1024)], id="read"),
        pytest.param(WRITE, DATA, [("write", 2048, DATA)], id="write"),
        pytest.param(FLUSH_DISKCACHE, b"", [("flush",)], id="flush"),
        pytest.param(FLUSH_DISKCACHE, DATA, [("flush",), ("write", 2048, DATA)], id="flush, then write"),
        pytest.param(WRITE_BARRIER, DATA, [("flush",), ("write", 2048, DATA), ("flush",)], id="barrier"),
        pytest.param(DISCARD, DATA, [("discard", 2048, 1024)], id="discard"),
    ],
)
"""What the image is asked for, in order: a barrier's own data is stable when it is done (T37)."""


@WHAT_EACH_DOES
async def test_in_memory_everything_is_done_at_once(op: int, data: bytes, calls: list[tuple[object, ...]]) -> None:
    """On an image in memory each operation is done within `submit`, in the caller's thread, and no worker is made."""
    bench = Bench(FakeImage(in_memory=True))
    one = job(op, 4, data)
    assert bench.submit([one]) == [one]
    assert (one.status, bench.image.calls) == (OKAY, calls)
    assert bench.image.threads == {threading.get_ident()}
    await bench.engine.close()
    assert bench.batches == []


@WHAT_EACH_DOES
async def test_the_worker_does_the_rest(op: int, data: bytes, calls: list[tuple[object, ...]]) -> None:
    """On another image each operation is done by a thread of its own, and finished on the event loop."""
    bench = Bench(FakeImage())
    one = job(op, 4, data)
    await bench.run(one)
    assert (one.status, bench.batches) == (OKAY, [[one]])
    assert [call for call in bench.image.calls if call[0] != "read nowait"] == calls
    assert bench.finished_in == {threading.get_ident()}
    await bench.engine.close()


async def test_only_the_worker_waits_for_the_device() -> None:
    """What may wait is never called in the event loop's thread."""
    bench = Bench(FakeImage())
    await bench.run(job(WRITE, 0, DATA), job(FLUSH_DISKCACHE), job(DISCARD, 0, DATA))
    assert threading.get_ident() not in bench.image.threads
    assert len(bench.image.threads) == 1
    await bench.engine.close()


async def test_cached_reads_are_done_at_once() -> None:
    """A read that the page cache answers is back before `submit` returns; the batch's other jobs go to the worker."""
    bench = Bench(FakeImage(cached=True))
    write, read = job(WRITE, 0, DATA), job(READ, 8, bytes(512))
    assert bench.submit([write, read]) == [read]
    assert bytes(read.buffers[0]) == b"r" * 512
    await bench.until(1)
    assert bench.batches == [[write]]
    await bench.engine.close()


async def test_without_nowait_it_is_not_asked_for_again() -> None:
    """A filesystem that does not know RWF_NOWAIT says so once; from then on every read goes to the worker."""
    bench = Bench(FakeImage(cached=True))
    bench.image.errors["read nowait"] = OSError(errno.EOPNOTSUPP, "no")
    first, second = job(READ, 0, bytes(512)), job(READ, 8, bytes(512))
    await bench.run(first)
    await bench.run(second)
    assert bench.image.calls == [("read nowait", 0, 512), ("read", 0, 512), ("read", 4096, 512)]
    assert [first.status, second.status] == [OKAY, OKAY]
    await bench.engine.close()


async def test_any_other_error_of_nowait_is_left_to_the_worker() -> None:
    """EAGAIN, or an error of the device: the worker reads again and says what became of it; nowait stays in use."""
    bench = Bench(FakeImage(cached=True))
    bench.image.errors["read nowait"] = BlockingIOError(errno.EAGAIN, "later")
    one = job(READ, 0, bytes(512))
    await bench.run(one)
    assert one.status == OKAY
    del bench.image.errors["read nowait"]
    again = job(READ, 0, bytes(512))
    assert bench.submit([again]) == [again]
    await bench.engine.close()


async def test_a_flush_comes_after_the_writes_before_it() -> None:
    """In whatever batches the jobs were submitted, the worker does them in order, one after the other."""
    bench = Bench(FakeImage())
    bench.submit([job(WRITE, 0, b"a" * 512), job(WRITE, 1, b"b" * 512)])
    bench.submit([job(WRITE, 2, b"c" * 512), job(FLUSH_DISKCACHE), job(WRITE, 3, b"d" * 512)])
    await bench.until(2)
    assert bench.image.calls == [
        ("write", 0, b"a" * 512),
        ("write", 512, b"b" * 512),
        ("write", 1024, b"c" * 512),
        ("flush",),
        ("write", 1536, b"d" * 512),
    ]
    await bench.engine.close()


async def test_submitting_does_not_wait() -> None:
    """While the device keeps the worker waiting, more can be submitted."""
    gate = threading.Event()

    class Slow(FakeImage):
        def write(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
            assert gate.wait(60)
            super().write(buffers, offset, length)

    bench = Bench(Slow())
    assert bench.submit([job(WRITE, 0, DATA)]) == []
    assert bench.submit([job(WRITE, 8, DATA)]) == []
    assert bench.image.calls == []
    gate.set()
    await bench.until(2)
    await bench.engine.close()


EACH_OPERATION = pytest.mark.parametrize(
    ("op", "data", "failing"),
    [
        (READ, DATA, "read"),
        (WRITE, DATA, "write"),
        (FLUSH_DISKCACHE, b"", "flush"),
        (WRITE_BARRIER, DATA, "flush"),
        (WRITE_BARRIER, DATA, "write"),
        (DISCARD, DATA, "discard"),
    ],
)
EACH_ERROR = pytest.mark.parametrize(
    ("code", "status"), [(errno.EIO, ERROR), (errno.ENOSPC, ERROR), (errno.EOPNOTSUPP, EOPNOTSUPP)]
)


@EACH_OPERATION
@EACH_ERROR
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "worker"])
async def test_an_error_is_the_answer(
    op: int, data: bytes, failing: str, code: int, status: int, in_memory: bool
) -> None:
    """Any OSError of the image is ERROR, but one: EOPNOTSUPP; the jobs after it are done."""
    bench = Bench(FakeImage(in_memory=in_memory))
    bench.image.errors[failing] = OSError(code, "no")
    failed = job(op, 4, data)
    other = job(WRITE, 0, DATA) if failing in ("read", "discard") else job(READ, 0, DATA)
    if in_memory:
        bench.submit([failed, other])
    else:
        await bench.run(failed, other)
    assert [failed.status, other.status] == [status, OKAY]
    await bench.engine.close()


async def test_a_barrier_whose_first_flush_fails_writes_nothing() -> None:
    """What was to be stable before it is not: its data stays away."""
    bench = Bench(FakeImage(in_memory=True))
    bench.image.errors["flush"] = OSError(errno.EIO, "no")
    bench.submit([job(WRITE_BARRIER, 0, DATA)])
    assert bench.image.calls == [("flush",)]


async def test_closing_ends_the_worker() -> None:
    """No thread is left over, and closing an engine that needed none is nothing."""
    bench = Bench(FakeImage())
    await bench.run(job(WRITE, 0, DATA))
    assert "image /fake.img" in [thread.name for thread in threading.enumerate()]
    await bench.engine.close()
    assert "image /fake.img" not in [thread.name for thread in threading.enumerate()]
    await bench.engine.close()
