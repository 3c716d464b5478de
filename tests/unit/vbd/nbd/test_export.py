"""The NBD export: its socket, its name, who may connect, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.doubles.memory_disk import MemoryDisk
from tests.doubles.nbd_client import Answer, NbdClient, until
from xenbusd.errors import UsageError
from xenbusd_vbd.nbd import export as export_module
from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.export import NbdExport, offer_of
from xenbusd_vbd.nbd.wire import TransmissionFlags as Flags

SIZE = 1 << 20


@pytest.mark.parametrize(
    ("disk", "flags"),
    [
        (MemoryDisk(SIZE), Flags.SEND_FLUSH | Flags.SEND_FUA | Flags.SEND_TRIM),
        (MemoryDisk(SIZE, can_trim=False), Flags.SEND_FLUSH | Flags.SEND_FUA),
        (MemoryDisk(SIZE, can_flush=False), Flags.SEND_TRIM),
        (MemoryDisk(SIZE, read_only=True), Flags.READ_ONLY | Flags.SEND_FLUSH | Flags.SEND_FUA),
    ],
)
def test_flags_say_what_the_disk_can_do(disk: MemoryDisk, flags: Flags) -> None:
    """Every ability of the disk has its flag; several connections are always fine, since all share one disk."""
    assert offer_of(disk, "d").flags == flags | Flags.HAS_FLAGS | Flags.CAN_MULTI_CONN


@pytest.mark.parametrize("name", ["", "x" * 4097, "a\0b"])
def test_impossible_names(name: str) -> None:
    """A name that NBD cannot carry is refused with a sentence."""
    with pytest.raises(ValueError, match="export's name"):
        NbdExport(MemoryDisk(SIZE), name=name)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("size_bytes", 1000), ("size_bytes", -512), ("block_size", 513), ("block_size", 0), ("preferred_size", 5000)],
)
def test_impossible_sizes(attribute: str, value: int) -> None:
    """Sizes that cannot be announced are refused with a sentence."""
    disk = MemoryDisk(SIZE)
    setattr(disk, attribute, value)
    with pytest.raises(ValueError, match="vbd-1: a "):
        NbdExport(disk, name="vbd-1")


async def test_socket_mode_and_removal(tmp_path: Path) -> None:
    """The socket is for its owner alone, whatever the umask, and is gone after close."""
    path = tmp_path / "nbd"
    export = NbdExport(MemoryDisk(SIZE), name="vbd-51712")
    await export.listen(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await export.close()
    assert not path.exists()
    await export.close()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """A socket without a server behind it is replaced."""
    path = tmp_path / "nbd"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    export = NbdExport(MemoryDisk(SIZE), name="vbd-51712")
    await export.listen(str(path))
    client = await NbdClient.connect(str(path))
    await client.close()
    await export.close()


async def test_a_live_socket_is_refused(tmp_path: Path) -> None:
    """Where another server answers, we do not listen, and it is not disturbed."""
    path = str(tmp_path / "nbd")
    first, second = (NbdExport(MemoryDisk(SIZE), name=f"vbd-{n}") for n in (1, 2))
    await first.listen(path)
    with pytest.raises(UsageError, match="in use"):
        await second.listen(path)
    await second.close()
    client = await NbdClient.connect(path)
    await client.close()
    await first.close()
    assert not os.path.exists(path)


async def test_listening_twice_or_after_close(tmp_path: Path) -> None:
    """An export listens once in its life."""
    export = NbdExport(MemoryDisk(SIZE), name="vbd-51712")
    await export.listen(str(tmp_path / "nbd"))
    with pytest.raises(ValueError, match="listens already"):
        await export.listen(str(tmp_path / "other"))
    await export.close()
    with pytest.raises(ValueError, match="closed"):
        await export.listen(str(tmp_path / "other"))
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ValueError, match="closed"):
        export.serve(ours)


async def test_too_many_clients_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a client is cut off and the log says so; when one leaves, there is room again."""
    monkeypatch.setattr(export_module, "CONNECTIONS_MAX", 2)
    path, logged = str(tmp_path / "nbd"), []
    export = NbdExport(MemoryDisk(SIZE), name="vbd-51712", log=lambda event, **facts: logged.append((event, facts)))
    await export.listen(path)
    clients = [await NbdClient.connect(path) for _ in range(2)]
    late = NbdClient(*await asyncio.open_unix_connection(path))
    assert await late.is_over()
    assert [event for event, _ in logged] == ["nbd.refused"]
    await clients.pop().close()
    await until(lambda: export.clients == 1)
    clients.append(await NbdClient.connect(path))
    assert (await clients[-1].ask(wire.Command.FLUSH, 1)).error == 0
    assert export.counters["nbd_connections"] == 3
    for client in (*clients, late):
        await client.close()
    await export.close()


async def test_close_answers_what_is_in_flight(tmp_path: Path) -> None:
    """Requests in flight are answered during close; new ones are not taken; then the client is let go."""
    disk = MemoryDisk(SIZE, deferred=True)
    export = NbdExport(disk, name="vbd-51712")
    await export.listen(str(tmp_path / "nbd"))
    client = await NbdClient.connect(str(tmp_path / "nbd"))
    client.request(wire.Command.READ, 1, 0, 512)
    await until(lambda: len(disk.waiting) == 1)
    closing = asyncio.create_task(export.close(drain_s=30))
    await until(lambda: not (tmp_path / "nbd").exists())
    client.request(wire.Command.READ, 2, 0, 512)
    disk.answer()
    assert await client.answer() == Answer(1, 0, bytes(512))
    assert await client.is_over()
    await closing
    assert disk.seen == [("read", 0, 512)]
    assert export.clients == 0
    await client.close()


async def test_close_takes_no_write_to_its_end(tmp_path: Path) -> None:
    """A write whose data is still coming in when close begins never reaches the disk, though a read is awaited."""
    disk = MemoryDisk(SIZE, deferred=True)
    export = NbdExport(disk, name="vbd-51712")
    await export.listen(str(tmp_path / "nbd"))
    client = await NbdClient.connect(str(tmp_path / "nbd"))
    client.request(wire.Command.READ, 1, 0, 512)
    client.writer.write(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.Command.WRITE, 2, 0, 8192) + b"x" * 4096)
    await until(lambda: export.counters["nbd_requests"] == 2)
    closing = asyncio.create_task(export.close(drain_s=30))
    await until(lambda: not (tmp_path / "nbd").exists())
    client.writer.write(b"x" * 4096)
    for _ in range(100):
        await asyncio.sleep(0)
    disk.answer()
    assert await client.answer() == Answer(1, 0, bytes(512))
    await closing
    assert disk.seen == [("read", 0, 512)]
    await client.close()


async def test_close_does_not_wait_for_a_dead_disk(tmp_path: Path) -> None:
    """A disk that never answers costs close its deadline and no more; a late answer then harms nobody."""
    disk = MemoryDisk(SIZE, deferred=True)
    export = NbdExport(disk, name="vbd-51712")
    await export.listen(str(tmp_path / "nbd"))
    client = await NbdClient.connect(str(tmp_path / "nbd"))
    client.request(wire.Command.WRITE, 1, 0, data=b"x" * 512)
    await until(lambda: len(disk.waiting) == 1)
    await export.close(drain_s=0.01)
    assert export.clients == 0
    assert await client.is_over()
    disk.answer()
    await client.close()


async def test_close_breaks_off_halves(tmp_path: Path) -> None:
    """A client in its handshake and one in the middle of a write's data do not hold up close."""
    export = NbdExport(MemoryDisk(SIZE), name="vbd-51712")
    await export.listen(str(tmp_path / "nbd"))
    greeted = NbdClient(*await asyncio.open_unix_connection(str(tmp_path / "nbd")))
    await greeted.reader.readexactly(18)
    writing = await NbdClient.connect(str(tmp_path / "nbd"))
    writing.writer.write(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.Command.WRITE, 1, 0, 4096) + b"half")
    await until(lambda: export.counters["nbd_requests"] == 1)
    await export.close(drain_s=3600)
    assert await greeted.is_over()
    assert await writing.is_over()
    for client in (greeted, writing):
        await client.close()


def resized(disk: MemoryDisk, size_bytes: int) -> None:
    """Give a disk another size."""
    disk.size_bytes = size_bytes
    disk.data = bytearray(size_bytes)


async def test_a_disk_that_grows(tmp_path: Path) -> None:
    """After `refresh` a client that was connected reaches the new part, as the kernel's does once it has the new size;
    clients that come get the new size."""
    disk = MemoryDisk(SIZE)
    export = NbdExport(disk, name="vbd-51712")
    await export.listen(str(tmp_path / "nbd"))
    client = await NbdClient.connect(str(tmp_path / "nbd"))
    ours, theirs = socket.socketpair()
    export.serve(ours)
    await until(lambda: export.clients == 2)
    kernel = NbdClient(*await asyncio.open_connection(sock=theirs))
    for each in (client, kernel):
        assert (await each.ask(wire.Command.READ, 1, SIZE, 512)).error == errno.EINVAL
    resized(disk, 2 * SIZE)
    export.refresh()
    assert export.size_bytes == 2 * SIZE
    for each in (client, kernel):
        assert (await each.ask(wire.Command.READ, 2, SIZE, 512)).error == 0
        assert (await each.ask(wire.Command.READ, 3, 2 * SIZE, 512)).error == errno.EINVAL
        await each.close()
    await export.close()


async def test_a_disk_that_shrinks(tmp_path: Path) -> None:
    """A client that was connected keeps the old size, and the disk answers; clients that come get the new one."""
    disk = MemoryDisk(SIZE)
    export = NbdExport(disk, name="vbd-51712")
    await export.listen(str(tmp_path / "nbd"))
    before = await NbdClient.connect(str(tmp_path / "nbd"))
    resized(disk, SIZE // 2)
    export.refresh()
    disk.fail_with = errno.EIO
    after = await NbdClient.connect(str(tmp_path / "nbd"))
    assert (await before.ask(wire.Command.READ, 1, SIZE - 512, 512)).error == errno.EIO
    assert (await after.ask(wire.Command.READ, 1, SIZE - 512, 512)).error == errno.EINVAL
    assert disk.seen == [("read", SIZE - 512, 512)]
    for each in (before, after):
        await each.close()
    await export.close()


async def test_a_size_that_cannot_be_announced() -> None:
    """A disk that is no whole number of its own blocks is refused, and the old offer stands."""
    disk = MemoryDisk(SIZE)
    export = NbdExport(disk, name="vbd-51712")
    resized(disk, SIZE + 100)
    with pytest.raises(ValueError, match="a multiple of 512 bytes"):
        export.refresh()
    assert export.size_bytes == SIZE
    await export.close()
