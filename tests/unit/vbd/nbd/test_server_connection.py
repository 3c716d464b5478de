"""One NBD connection: requests in, replies out, limits kept, and no harm from a client that misbehaves or goes."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.memory_disk import MemoryDisk
from tests.doubles.nbd_client import Answer, NbdClient, until
from xenbusd_vbd.nbd import server_requests, wire
from xenbusd_vbd.nbd.export import NbdExport

SIZE = 4 << 20


class Bench:
    """A disk, its export, and what the export logged."""

    def __init__(self, disk: MemoryDisk, directory: Path) -> None:
        self.disk = disk
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.export = NbdExport(disk, name="vbd-51712", log=lambda event, **facts: self.logged.append((event, facts)))
        self.path = str(directory / "nbd")
        self._clients: list[NbdClient] = []

    async def client(self, *, structured: bool = False) -> NbdClient:
        """Connect one more client."""
        client = await NbdClient.connect(self.path, structured=structured)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Hang up all clients and close the export."""
        for client in self._clients:
            await client.close()
        await self.export.close()


OpenBench = Callable[[MemoryDisk], Any]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[OpenBench]:
    """Serve a disk: `bench = await serve(disk)`."""
    benches: list[Bench] = []

    async def start(disk: MemoryDisk) -> Bench:
        bench = Bench(disk, tmp_path)
        await bench.export.listen(bench.path)
        benches.append(bench)
        return bench

    yield start
    for bench in benches:
        await bench.close()


@pytest.mark.parametrize("structured", [False, True])
async def test_write_then_read(serve: OpenBench, structured: bool) -> None:
    """What was written is read back, in simple and in structured replies; lent pieces were copied in time."""
    bench = await serve(MemoryDisk(SIZE))
    client = await bench.client(structured=structured)
    data = bytes(range(256)) * 16
    assert await client.ask(wire.Command.WRITE, 1, 8192, data=data) == Answer(1, 0, b"")
    assert await client.ask(wire.Command.READ, 2, 8192, 4096) == Answer(2, 0, data)
    assert bench.disk.seen == [("write", 8192, 4096, False), ("read", 8192, 4096)]
    counters = bench.export.counters
    assert (counters["nbd_connections"], counters["nbd_requests"], counters["nbd_errors"]) == (1, 2, 0)
    assert (counters["nbd_bytes_read"], counters["nbd_bytes_written"]) == (4096, 4096)


@pytest.mark.parametrize("structured", [False, True])
async def test_flush_trim_and_fua(serve: OpenBench, structured: bool) -> None:
    """Flush and trim reach the disk; FUA on a write goes with it, FUA on a trim is a flush after it."""
    bench = await serve(MemoryDisk(SIZE))
    client = await bench.client(structured=structured)
    fua = wire.FLAG_FUA
    assert (await client.ask(wire.Command.WRITE, 1, 0, data=b"x" * 512, flags=fua)).error == 0
    assert (await client.ask(wire.Command.FLUSH, 2)).error == 0
    assert (await client.ask(wire.Command.TRIM, 3, 512, 1024)).error == 0
    assert (await client.ask(wire.Command.TRIM, 4, 0, 512, flags=fua)).error == 0
    assert bench.disk.seen == [
        ("write", 0, 512, True),
        ("flush",),
        ("trim", 512, 1024),
        ("trim", 0, 512),
        ("flush",),
    ]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("command", [wire.Command.READ, wire.Command.WRITE, wire.Command.TRIM])
async def test_nothing_is_done_without_the_disk(serve: OpenBench, structured: bool, command: int) -> None:
    """A request for zero bytes succeeds and does not bother the disk."""
    bench = await serve(MemoryDisk(SIZE))
    client = await bench.client(structured=structured)
    assert await client.ask(command, 1, 512, 0, flags=wire.FLAG_FUA) == Answer(1, 0, b"")
    assert bench.disk.seen == []


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_errors_of_the_disk(serve: OpenBench, structured: bool, code: int) -> None:
    """The disk's errno reaches the client for every command; a failed trim with FUA is not flushed."""
    bench = await serve(MemoryDisk(SIZE))
    bench.disk.fail_with = code
    client = await bench.client(structured=structured)
    for handle, command in enumerate((wire.Command.READ, wire.Command.WRITE, wire.Command.FLUSH, wire.Command.TRIM)):
        data = b"x" * 512 if command == wire.Command.WRITE else b""
        answer = await client.ask(command, handle, 0, 0 if command == wire.Command.FLUSH else 512, data=data, flags=1)
        assert (answer.handle, answer.error, answer.data) == (handle, code, b"")
    assert bench.export.counters["nbd_errors"] == 4
    assert bench.disk.seen.count(("flush",)) == 1
    assert (bench.export.counters["nbd_bytes_read"], bench.export.counters["nbd_bytes_written"]) == (0, 0)


async def test_a_refusal_has_a_sentence(serve: OpenBench) -> None:
    """With structured replies the client also hears why, and nothing reaches the disk."""
    bench = await serve(MemoryDisk(SIZE))
    client = await bench.client(structured=True)
    answer = await client.ask(wire.Command.READ, 7, SIZE, 512)
    assert (answer.handle, answer.error, answer.message) == (7, errno.EINVAL, f"the disk ends at {SIZE}")
    assert bench.disk.seen == []


@pytest.mark.parametrize("size", [512, 300_000])
async def test_data_of_a_refused_write_is_skipped(serve: OpenBench, size: int) -> None:
    """A write to a read-only disk gets EPERM after its data, and the next request is understood."""
    bench = await serve(MemoryDisk(SIZE, read_only=True))
    client = await bench.client()
    client.request(wire.Command.WRITE, 1, 0, data=b"\x25\x60\x95\x13" * (size // 4))
    client.request(wire.Command.READ, 2, 0, 512)
    assert await client.answer() == Answer(1, errno.EPERM, b"")
    assert await client.answer() == Answer(2, 0, bytes(512))
    assert bench.disk.seen == [("read", 0, 512)]


async def test_large_writes_keep_their_data_until_done(serve: OpenBench) -> None:
    """Writes larger than the receive buffer, answered late and last first, end up where they belong."""
    bench = await serve(MemoryDisk(SIZE, deferred=True))
    client = await bench.client()
    for handle in range(4):
        client.request(wire.Command.WRITE, handle, handle << 20, data=bytes([handle + 1]) * (1 << 20))
    await until(lambda: len(bench.disk.waiting) == 4)
    bench.disk.answer(last_first=True)
    assert [(await client.answer()).handle for _ in range(4)] == [3, 2, 1, 0]
    assert bench.disk.data == b"".join(bytes([n + 1]) * (1 << 20) for n in range(4))


async def test_requests_in_one_packet_are_taken_at_once(serve: OpenBench) -> None:
    """A hundred requests in one packet all reach the disk before any is answered, and none is lost."""
    bench = await serve(MemoryDisk(SIZE, deferred=True))
    client = await bench.client()
    for handle in range(100):
        client.request(wire.Command.READ, handle, handle * 512, 512)
    await until(lambda: len(bench.disk.waiting) == 100)
    bench.disk.answer()
    assert [(await client.answer()).handle for _ in range(100)] == list(range(100))


async def test_requests_in_flight_are_bounded(serve: OpenBench) -> None:
    """Beyond 128 requests in flight the rest wait until some are answered; other clients are served."""
    bench = await serve(MemoryDisk(SIZE, deferred=True))
    client, other = await bench.client(), await bench.client()
    for handle in range(300):
        client.request(wire.Command.READ, handle, 0, 512)
    await until(lambda: len(bench.disk.waiting) == 128)
    other.request(wire.Command.FLUSH, 1)
    await until(lambda: ("flush",) in bench.disk.seen)
    assert len(bench.disk.waiting) == 129
    bench.disk.answer(10)
    await until(lambda: len(bench.disk.waiting) == 129)
    while len(bench.disk.seen) < 301 or bench.disk.waiting:
        bench.disk.answer()
        await asyncio.sleep(0)
    assert sorted([(await client.answer()).handle for _ in range(300)]) == list(range(300))


@pytest.mark.parametrize("command", [wire.Command.READ, wire.Command.WRITE])
async def test_bytes_in_flight_are_bounded(serve: OpenBench, monkeypatch: pytest.MonkeyPatch, command: int) -> None:
    """Reads and writes in flight together stay below the limit of bytes; requests without data pass the count."""
    monkeypatch.setattr(server_requests, "BYTES_MAX", 64 * 1024)
    bench = await serve(MemoryDisk(SIZE, deferred=True))
    client, other = await bench.client(), await bench.client()
    for handle in range(10):
        data = b"w" * 16384 if command == wire.Command.WRITE else b""
        client.request(command, handle, 0, 16384, data=data)
    await until(lambda: len(bench.disk.waiting) == 4)
    other.request(wire.Command.FLUSH, 1)
    await until(lambda: ("flush",) in bench.disk.seen)
    assert len(bench.disk.waiting) == 5
    while len(bench.disk.seen) < 11 or bench.disk.waiting:
        bench.disk.answer(1)
        await asyncio.sleep(0)
    assert [(await client.answer()).handle for _ in range(10)] == list(range(10))


async def test_an_impossible_length_does_not_wait_for_room(serve: OpenBench) -> None:
    """A read of 4 GiB is refused at once instead of waiting for room that never comes."""
    bench = await serve(MemoryDisk(SIZE))
    client = await bench.client()
    assert (await client.ask(wire.Command.READ, 1, 0, 2**32 - 512)).error == errno.EINVAL
    assert (await client.ask(wire.Command.READ, 2, 0, 512)).error == 0


async def test_a_client_that_takes_no_replies_is_not_read(serve: OpenBench) -> None:
    """When replies pile up, no more requests are taken; once the client reads again, it gets every one."""
    bench = await serve(MemoryDisk(SIZE))
    client, other = await bench.client(), await bench.client()
    count = 200
    client.reader._transport.pause_reading()
    for handle in range(count):
        client.request(wire.Command.READ, handle, 0, 1 << 20)
    # One turn takes what the buffer holds; a round trip of the other client shows that it is over.
    await until(lambda: len(bench.disk.seen) > 0)
    for handle in range(50):
        await other.ask(wire.Command.FLUSH, handle)
    taken = bench.disk.seen.count(("read", 0, 1 << 20))
    assert 0 < taken < 20
    client.reader._transport.resume_reading()
    for handle in range(count):
        answer = await client.answer()
        assert (answer.handle, len(answer.data)) == (handle, 1 << 20)


async def test_a_client_gone_with_requests_in_flight(serve: OpenBench) -> None:
    """Answers for a client that has vanished are dropped; the others go on."""
    bench = await serve(MemoryDisk(SIZE, deferred=True))
    client, other = await bench.client(), await bench.client()
    client.request(wire.Command.READ, 1, 0, 512)
    client.request(wire.Command.WRITE, 2, 0, data=b"x" * 512)
    client.request(wire.Command.TRIM, 3, 0, 512, flags=wire.FLAG_FUA)
    await until(lambda: len(bench.disk.waiting) == 3)
    await client.close()
    await until(lambda: bench.export.clients == 1)
    bench.disk.answer()
    bench.disk.answer()
    bench.disk.deferred = False
    assert bench.disk.seen[-1] == ("flush",)
    assert (await other.ask(wire.Command.READ, 9, 0, 512)).error == 0
    assert bench.logged == []


async def test_a_client_gone_in_the_middle_of_a_write(serve: OpenBench) -> None:
    """Half of a write's data never reaches the disk."""
    bench = await serve(MemoryDisk(SIZE))
    client = await bench.client()
    client.writer.write(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.Command.WRITE, 1, 0, 1 << 20) + b"x" * 400_000)
    await client.writer.drain()
    client.writer.write_eof()
    assert await client.is_over()
    await until(lambda: bench.export.clients == 0)
    assert bench.disk.seen == []


async def test_disc_waits_for_what_is_in_flight(serve: OpenBench) -> None:
    """After DISC everything in flight is still answered, then the connection ends; much that follows is ignored."""
    bench = await serve(MemoryDisk(SIZE, deferred=True))
    client = await bench.client()
    client.request(wire.Command.READ, 1, 0, 512)
    client.request(wire.Command.DISC, 2)
    for _ in range(20):
        client.request(wire.Command.WRITE, 3, 0, data=b"x" * 32768)
    await until(lambda: len(bench.disk.waiting) == 1)
    async with asyncio.timeout(10):
        await client.writer.drain()
    bench.disk.answer()
    assert await client.answer() == Answer(1, 0, bytes(512))
    assert await client.is_over()
    assert bench.disk.seen == [("read", 0, 512)]
    assert bench.logged == []


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"\0" * 28, "a request begins with 0x0"),
        (
            wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.Command.WRITE, 1, 0, (32 << 20) + 512),
            "a write of 33554944 bytes",
        ),
    ],
)
async def test_breaches_end_the_connection(serve: OpenBench, message: bytes, why: str) -> None:
    """Garbage, and a write too large to skip, end this connection with a line in the log; others live on."""
    bench = await serve(MemoryDisk(SIZE))
    client, other = await bench.client(), await bench.client()
    client.writer.write(message)
    assert await client.is_over()
    assert (await other.ask(wire.Command.FLUSH, 1)).error == 0
    ((event, facts),) = bench.logged
    assert event == "nbd.breach"
    assert why in facts["reason"]


async def test_a_handshake_breach_ends_the_connection(serve: OpenBench) -> None:
    """A client that speaks something else is gone after its first words."""
    bench = await serve(MemoryDisk(SIZE))
    reader, writer = await asyncio.open_unix_connection(bench.path)
    client = NbdClient(reader, writer)
    await reader.readexactly(18)
    writer.write(b"\0\0\0\3GET / HTTP/1.1\r\n")
    assert await client.is_over()
    assert bench.logged[0][0] == "nbd.breach"
    await client.close()


async def test_abort_is_acknowledged_and_closed(serve: OpenBench) -> None:
    """ABORT gets its ACK before the connection ends."""
    bench = await serve(MemoryDisk(SIZE))
    client = NbdClient(*await asyncio.open_unix_connection(bench.path))
    await client.reader.readexactly(18)
    client.writer.write(b"\0\0\0\3")
    client.option(wire.Option.ABORT)
    assert await client.option_reply() == (wire.Reply.ACK, b"")
    assert await client.is_over()
    assert bench.logged == []
    await client.close()


async def test_a_socket_past_the_handshake(serve: OpenBench) -> None:
    """A given socket is served without a greeting and in simple replies, as the kernel's client needs it."""
    bench = await serve(MemoryDisk(SIZE))
    ours, theirs = socket.socketpair()
    bench.export.serve(ours)
    client = NbdClient(*await asyncio.open_unix_connection(sock=theirs))
    assert await client.ask(wire.Command.WRITE, 1, 512, data=b"k" * 512) == Answer(1, 0, b"")
    assert await client.ask(wire.Command.READ, 2, 512, 512) == Answer(2, 0, b"k" * 512)
    await client.close()


async def test_a_disk_that_answers_too_little_loses_the_client(serve: OpenBench) -> None:
    """Our own bug, a read answered with the wrong length, is loud, and the client is not left waiting."""

    class Short(MemoryDisk):
        def read(self, offset: int, length: int, done: Any) -> None:  # noqa: ARG002
            self.waiting.append(lambda: done(0, [memoryview(b"x")]))

    bench = await serve(Short(SIZE))
    client = await bench.client()
    client.request(wire.Command.READ, 1, 0, 512)
    await until(lambda: len(bench.disk.waiting) == 1)
    with pytest.raises(ValueError, match="512 bytes with 1"):
        bench.disk.answer()
    assert await client.is_over()
