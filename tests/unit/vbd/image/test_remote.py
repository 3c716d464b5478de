"""Jobs through an NBD server, which may die at any time."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles.memory_disk import MemoryDisk
from tests.doubles.nbd_bench import GREETING, Bench, answer, export_info, job, scripted, sizes_info, until
from xenbusd.api import ResourceError
from xenbusd_vbd.image import commands, remote
from xenbusd_vbd.nbd.wire import Option, TransmissionFlags, simple_reply
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    OKAY,
    READ,
    WRITE,
    WRITE_BARRIER,
)

SIZE = 1 << 20
DATA = b"w" * 1024


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A server with a disk of 1 MiB."""
    bench = Bench(tmp_path, MemoryDisk(SIZE))
    await bench.serve()
    yield bench
    await bench.close()


@pytest.mark.parametrize(
    ("op", "data", "sectors", "seen"),
    [
        pytest.param(READ, DATA, 2, [("read", 2048, 1024)], id="read"),
        pytest.param(WRITE, DATA, 2, [("write", 2048, 1024, False)], id="write"),
        pytest.param(FLUSH_DISKCACHE, b"", 0, [("flush",)], id="flush"),
        pytest.param(FLUSH_DISKCACHE, DATA, 2, [("flush",), ("write", 2048, 1024, False)], id="flush, then write"),
        pytest.param(WRITE_BARRIER, DATA, 2, [("flush",), ("write", 2048, 1024, False), ("flush",)], id="barrier"),
        pytest.param(WRITE_BARRIER, b"", 0, [("flush",)], id="barrier without data"),
        pytest.param(DISCARD, b"", 6, [("trim", 2048, 3072)], id="discard"),
    ],
)
async def test_what_each_does(bench: Bench, op: int, data: bytes, sectors: int, seen: list[tuple[object, ...]]) -> None:
    """The commands that the server gets, in order."""
    engine = await bench.engine()
    assert await bench.run(engine, job(op, 4, data, sectors=sectors, pieces=2 if data else 1)) == [OKAY]
    assert bench.disk.seen == seen
    await engine.close()


async def test_a_long_discard_goes_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One TRIM has 32 bits of length; a discard of nothing has nothing to ask for."""
    monkeypatch.setattr(commands, "TRIM_MAX", 2048)
    engine = await bench.engine()
    nothing = job(DISCARD, 4, sectors=0)
    assert engine.submit([nothing], bench.finished) == [nothing]
    assert await bench.run(engine, job(DISCARD, 4, sectors=9)) == [OKAY]
    assert bench.disk.seen == [("trim", 2048, 2048), ("trim", 4096, 2048), ("trim", 6144, 512)]
    await engine.close()


async def test_a_batch(bench: Bench) -> None:
    """Many at once, each with its own data, finished in fewer batches than there are jobs."""
    engine = await bench.engine()
    writes = [job(WRITE, 8 * n, bytes([n]) * 4096, pieces=4) for n in range(64)]
    assert await bench.run(engine, *writes) == [OKAY] * 64
    reads = [job(READ, 8 * n, bytes(4096), pieces=2) for n in range(64)]
    assert await bench.run(engine, *reads) == [OKAY] * 64
    assert [b"".join(read.buffers) for read in reads] == [bytes([n]) * 4096 for n in range(64)]
    assert bench.batches < 64
    await engine.close()


async def test_what_a_server_says_of_its_disk(tmp_path: Path) -> None:
    """A size that is no multiple of 512 is rounded down; block sizes become hints; a read-only disk trims nothing."""
    path = str(tmp_path / "nbd")
    bench = Bench(tmp_path, MemoryDisk(SIZE))
    answers = (
        answer(Option.INFO, export_info(1 << 20), sizes_info(4096, 65536, 1 << 25)),
        answer(Option.GO, export_info((1 << 20) + 511)),
    )
    async with scripted(path, GREETING, *answers, then=lambda reader, _: reader.read()):
        engine = await bench.engine()
        assert (engine.sectors, engine.can_discard, engine.can_discard_securely) == (2048, True, False)
        assert (engine.physical_sector_bytes, engine.discard_granularity, engine.discard_alignment) == (4096, 65536, 0)
        await engine.close()
        reader = await bench.engine(writable=False)
        assert not reader.can_discard
        await reader.close()


@pytest.mark.parametrize(
    ("infos", "sentence"),
    [
        ((export_info(flags=TransmissionFlags.HAS_FLAGS | TransmissionFlags.READ_ONLY),), "read-only"),
        ((export_info(), sizes_info(1, 512, 65536)), "at most 65536 bytes"),
    ],
)
async def test_a_server_that_will_not_do(tmp_path: Path, infos: tuple[bytes, ...], sentence: str) -> None:
    """Read-only where the disk is to be written, or too small requests: an error at once, not later at the guest."""
    bench = Bench(tmp_path, MemoryDisk(SIZE))
    async with scripted(bench.address.path, GREETING, answer(Option.INFO, *infos), answer(Option.GO, infos[0])):
        with pytest.raises(ResourceError, match=sentence):
            await bench.engine()


@pytest.mark.parametrize(
    ("code", "op", "status"),
    [
        (errno.EIO, READ, ERROR),
        (errno.ENOSPC, WRITE, ERROR),
        (errno.ENOTSUP, WRITE, ERROR),
        (errno.ENOTSUP, DISCARD, EOPNOTSUPP),
        (errno.EIO, DISCARD, ERROR),
        (errno.ENOTSUP, FLUSH_DISKCACHE, ERROR),
        (errno.EIO, WRITE_BARRIER, ERROR),
    ],
)
async def test_an_error_is_the_answer(bench: Bench, code: int, op: int, status: int) -> None:
    """EOPNOTSUPP goes to discards only: at it, blkfront would give up flushes for good. The disk lives on."""
    engine = await bench.engine()
    bench.disk.fail_with = code
    assert await bench.run(engine, job(op, 0, b"" if op in (FLUSH_DISKCACHE, DISCARD) else DATA, sectors=2)) == [status]
    assert len(bench.disk.seen) == 1  # a barrier whose first flush fails writes nothing
    bench.disk.fail_with = 0
    assert await bench.run(engine, job(WRITE, 0, DATA)) == [OKAY]
    await engine.close()


async def test_we_flush_by_ourselves_when_too_much_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At half of the limit a flush goes out; at the limit writes wait for it, and reads do not."""
    monkeypatch.setattr(remote, "UNFLUSHED_MAX", 4000)
    engine = await bench.engine()
    assert await bench.run(engine, job(WRITE, 0, DATA), job(WRITE, 2, DATA)) == [OKAY, OKAY]
    await until(lambda: ("flush",) in bench.disk.seen)
    bench.disk.deferred = True
    jobs = [job(WRITE, 2 * n, DATA) for n in range(4)]
    engine.submit(jobs, bench.finished)
    await bench.seen(7)
    bench.disk.answer()
    assert await bench.until(*jobs) == [OKAY] * 4
    await bench.seen(8)
    late, read = job(WRITE, 0, b"z" * 512), job(READ, 0, bytes(512))
    engine.submit([late, read], bench.finished)
    await bench.seen(9)
    assert bench.disk.seen[7:] == [("flush",), ("read", 0, 512)]
    bench.disk.deferred = False
    bench.disk.answer()
    assert await bench.until(late, read) == [OKAY, OKAY]
    assert bytes(bench.disk.data[:512]) == b"z" * 512
    await engine.close()


async def test_a_flush_of_our_own_that_fails_is_not_hidden(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failed writeback once. The guest gets an error at its next flush, and at that one only."""
    monkeypatch.setattr(remote, "UNFLUSHED_MAX", 2000)
    engine = await bench.engine()
    bench.disk.deferred = True
    write = job(WRITE, 0, DATA)
    engine.submit([write], bench.finished)
    await bench.seen(1)
    bench.disk.answer()
    await bench.seen(2)
    bench.disk.fail_with = errno.EIO
    bench.disk.answer()
    bench.disk.fail_with, bench.disk.deferred = 0, False
    assert await bench.run(engine, job(READ, 0, bytes(512))) == [OKAY]
    assert await bench.run(engine, job(FLUSH_DISKCACHE)) == [ERROR]
    assert await bench.run(engine, job(FLUSH_DISKCACHE)) == [OKAY]
    await engine.close()


async def test_a_server_that_says_that_it_shuts_down(tmp_path: Path) -> None:
    """ESHUTDOWN is not passed on to the guest: the request goes to the next server."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for handle in (1, 2):
            await reader.readexactly(28)
            writer.write(simple_reply(handle, errno.ESHUTDOWN))
        await reader.read()

    other = Bench(tmp_path, MemoryDisk(SIZE))
    answers = (answer(Option.INFO, export_info()), answer(Option.GO, export_info()))
    async with scripted(other.address.path, GREETING, *answers, then=refuse):
        engine = await other.engine()
        jobs = [job(READ, 0, bytes(512)), job(READ, 8, bytes(512))]
        engine.submit(jobs, other.finished)
        await until(lambda: "image_server.lost" in other.log.events)
    await other.serve()
    assert await other.until(*jobs) == [OKAY, OKAY]
    await engine.close()
    await other.close()


async def test_a_server_without_flush(tmp_path: Path) -> None:
    """It has nothing to flush: a flush is done at once, and nothing is kept."""
    bench = Bench(tmp_path, MemoryDisk(SIZE, can_flush=False))
    await bench.serve()
    engine = await bench.engine()
    flush = job(FLUSH_DISKCACHE)
    assert engine.submit([flush], bench.finished) == [flush]
    assert await bench.run(engine, job(WRITE_BARRIER, 0, DATA)) == [OKAY]
    assert bench.disk.seen == [("write", 0, 1024, False)]
    assert len(engine._unflushed) == 0
    await engine.close()
    await bench.close()
