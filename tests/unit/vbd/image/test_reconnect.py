"""An image server that dies, and the next one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles.memory_disk import MemoryDisk
from tests.doubles.nbd_bench import Bench, job, until
from xenbusd_vbd.image import reconnect, remote
from xenbusd_vbd.protocol import DISCARD, ERROR, FLUSH_DISKCACHE, OKAY, READ, WRITE

SIZE = 1 << 20
DATA = b"w" * 1024


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A server with a disk of 1 MiB."""
    bench = Bench(tmp_path, MemoryDisk(SIZE))
    await bench.serve()
    yield bench
    await bench.close()


async def test_what_was_not_answered_is_sent_again(bench: Bench) -> None:
    """The server dies with requests in flight; the next one gets them, in order, and each is answered once."""
    engine = await bench.engine()
    bench.disk.deferred = True
    jobs = [job(WRITE, 0, DATA), job(FLUSH_DISKCACHE), job(READ, 8, bytes(512)), job(DISCARD, 16, sectors=2)]
    assert engine.submit(jobs, bench.finished) == []
    await bench.seen(4)
    assert not engine.is_without_server
    await bench.die()
    await until(lambda: engine.is_without_server)
    bench.disk.deferred = False
    bench.disk.data[4096:4608] = b"r" * 512
    before = len(bench.disk.seen)
    await bench.serve()
    assert await bench.until(*jobs) == [OKAY] * 4
    assert not engine.is_without_server
    assert [what[0] for what in bench.disk.seen[before:]] == ["write", "flush", "read", "trim"]
    assert bytes(jobs[2].buffers[0]) == b"r" * 512
    assert len(bench.done) == 4
    assert bench.log.events[0], bench.log.events[-1] == ("image_server.lost", "image_server.back")
    await engine.close()


async def test_what_was_answered_and_not_flushed_is_written_again(bench: Bench) -> None:
    """A server that dies may have lost it. It is written first, in the order in which it was answered."""
    engine = await bench.engine()
    assert await bench.run(engine, job(WRITE, 0, b"0" * 512)) == [OKAY]
    assert await bench.run(engine, job(FLUSH_DISKCACHE)) == [OKAY]
    for letter in (b"1", b"2"):
        assert await bench.run(engine, job(WRITE, 0, letter * 512)) == [OKAY]
    await bench.die()
    bench.disk.data[:512] = b"0" * 512  # all that the flush had made sure of
    bench.disk.seen.clear()
    await bench.serve()
    assert await bench.read(engine, 0, 512) == b"2" * 512
    assert bench.disk.seen == [("write", 0, 512, False), ("write", 0, 512, False), ("read", 0, 512)]
    assert await bench.run(engine, job(FLUSH_DISKCACHE)) == [OKAY]
    await bench.die()
    bench.disk.seen.clear()
    await bench.serve()
    await bench.read(engine, 0, 512)
    assert bench.disk.seen == [("read", 0, 512)]
    await engine.close()


async def test_the_server_dies_again_while_that_is_written(bench: Bench) -> None:
    """No write is forgotten: the third server gets it."""
    engine = await bench.engine()
    for sector in range(3):
        assert await bench.run(engine, job(WRITE, sector, b"x" * 512)) == [OKAY]
    await bench.die()
    bench.disk.data[:] = bytes(SIZE)
    bench.disk.deferred = True
    bench.disk.seen.clear()
    await bench.serve()
    await bench.seen(1)
    await bench.die()
    bench.disk.deferred = False
    await bench.serve()
    assert await bench.read(engine, 0, 1536) == b"x" * 1536
    assert "image_server.failed" in bench.log.events
    await engine.close()


async def test_nobody_waits_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the limit all waiting requests fail, and new ones, too; once the server is back, the disk works again."""
    monkeypatch.setattr(reconnect, "OUTAGE_S", 0.05)
    monkeypatch.setattr(remote, "UNFLUSHED_MAX", 2000)
    engine = await bench.engine()
    assert await bench.run(engine, job(WRITE, 0, DATA)) == [OKAY]
    bench.disk.deferred = True
    one = job(READ, 0, bytes(512))
    engine.submit([one], bench.finished)
    await until(lambda: ("read", 0, 512) in bench.disk.seen)
    await bench.die()
    assert await bench.until(one) == [ERROR]
    refused = job(WRITE, 0, DATA)
    assert engine.submit([refused], bench.finished) == [refused]
    assert refused.status == ERROR
    bench.disk.deferred = False
    await bench.serve()
    await until(lambda: "image_server.back" in bench.log.events)
    assert await bench.run(engine, job(WRITE, 8, DATA), job(WRITE, 16, DATA)) == [OKAY, OKAY]
    assert bytes(bench.disk.data[:1024]) == DATA
    await engine.close()


async def test_a_smaller_disk_is_not_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that comes back with less is not used."""
    monkeypatch.setattr(reconnect, "OUTAGE_S", 0.05)
    engine = await bench.engine()
    await bench.die()
    bench.disk = MemoryDisk(SIZE // 2)
    await bench.serve()
    one = job(READ, 0, bytes(512))
    assert await bench.run(engine, one) == [ERROR]
    assert any("has shrunk" in str(facts.get("error")) for facts in bench.log.facts)
    await engine.close()


async def test_a_larger_disk_is_found_by_refresh(bench: Bench) -> None:
    """NBD has no message for it: the connection is made anew, and what was under way is not lost."""
    engine = await bench.engine()
    await engine.refresh()
    assert (engine.sectors, bench.log.events) == (SIZE // 512, [])
    first = bench._export
    assert first is not None
    assert await bench.run(engine, job(WRITE, 0, DATA)) == [OKAY]
    first._offer = first._offer._replace(size_bytes=2 * SIZE)
    bench.disk.data += bytes(SIZE)
    await engine.refresh()
    assert engine.sectors == 2 * SIZE // 512
    assert await bench.read(engine, SIZE // 512, 512) == bytes(512)
    await engine.close()


async def test_closing_while_there_is_no_server(bench: Bench) -> None:
    """The attempts end with the engine; closing again is nothing."""
    engine = await bench.engine()
    await bench.die()
    await until(lambda: "image_server.failed" in bench.log.events)
    await engine.close()
    await engine.close()
    await bench.serve()
    assert bench._export is not None
    assert bench._export.clients == 0
