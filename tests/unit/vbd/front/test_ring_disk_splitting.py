"""Large requests of the disk: split, or indirect where the backend takes such."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.doubles.backend_rings import GEOMETRY, MOST, Caller, Pages, Ring, on_disk, sent
from xenbusd_vbd.front.ring_disk import DISCARD_BYTES_MAX, RingDisk
from xenbusd_vbd.protocol import (
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    READ,
    SEGMENTS_MAX,
    WRITE,
    WRITE_BARRIER,
    Request,
)

# -- splitting ---------------------------------------------------------------------------------------------------------


async def test_the_largest_request_is_not_split(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """44 KiB fill all eleven segments."""
    disk.read(0, MOST, caller.read_done())
    [request] = await sent(ring)
    assert (len(request.grefs), request.sectors) == (SEGMENTS_MAX, 88)


async def test_a_long_read_is_put_together(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Its parts come back in any order, and the caller hears once, with everything in its place."""
    disk.read(0, 2 * MOST + 512, caller.read_done())
    parts = await sent(ring)
    assert [(part.sector, part.sectors) for part in parts] == [(0, 88), (88, 88), (176, 1)]
    for part in (parts[2], parts[0]):
        ring.succeed(part)
        ring.drain()
    assert caller.ends == []
    ring.succeed(parts[1])
    ring.drain()
    assert caller.ends == [("it", 0)]
    assert caller.data["it"] == on_disk(0, 177)


async def test_a_long_write_is_taken_apart(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Each part carries its piece of the data to its place on the disk."""
    data = on_disk(3, 177)
    disk.write(512, memoryview(data), False, caller.done())
    parts = await sent(ring)
    assert [(part.sector, part.sectors) for part in parts] == [(1, 88), (89, 88), (177, 1)]
    assert b"".join(ring.data(part) for part in parts) == data
    ring.succeed(*parts)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_a_long_trim_is_split(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """No single discard is longer than 1 GiB."""
    disk.trim(0, 2 * DISCARD_BYTES_MAX + 4096, caller.done())
    parts = await sent(ring)
    step = (1 << 30) // 512
    assert [(part.sector, part.sectors) for part in parts] == [(0, step), (step, step), (2 * step, 8)]
    ring.succeed(*parts)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_the_first_error_of_a_split_request_counts(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """The caller hears of it when all parts are answered, and gets none of a read's data."""
    disk.read(0, 3 * MOST, caller.read_done())
    parts = await sent(ring)
    ring.succeed(parts[0])
    ring.answer((parts[1].id, READ, EOPNOTSUPP), (parts[2].id, READ, ERROR))
    ring.drain()
    assert caller.ends == [("it", errno.EOPNOTSUPP)]
    assert caller.data["it"] == b""


async def test_fua_is_a_flush_after_all_parts(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """The flush goes out once every part is written, and the caller hears once the flush is done."""
    disk.write(0, memoryview(bytes(MOST + 512)), True, caller.done())
    first, second = await sent(ring)
    ring.succeed(first)
    ring.drain()
    assert await sent(ring) == []
    ring.succeed(second)
    ring.drain()
    [flush] = await sent(ring)
    assert flush.op == FLUSH_DISKCACHE
    assert caller.ends == []
    ring.answer((flush.id, FLUSH_DISKCACHE, ERROR))
    ring.drain()
    assert caller.ends == [("it", errno.EIO)]


async def test_fua_after_a_failure_flushes_nothing(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A write that failed is reported as it is."""
    disk.write(0, memoryview(bytes(512)), True, caller.done())
    [write] = await sent(ring)
    ring.answer((write.id, WRITE, ERROR))
    ring.drain()
    assert caller.ends == [("it", errno.EIO)]
    assert await sent(ring) == []


# -- indirect requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pages", "offered", "most"), [(352, 256, 44), (2048, 256, 256), (2048, 32, 32), (4096, 999, 256)]
)
async def test_the_largest_indirect_request(caller: Caller, pages: int, offered: int, most: int) -> None:
    """As many segments as the backend takes and we do, but eight such requests always find pages."""
    ring, disk = Ring(Pages(pages)), RingDisk(GEOMETRY)
    ring.attach(disk, indirect=offered)
    disk.read(0, (most + 1) * 4096, caller.read_done())
    assert [(request.sector, len(request.grefs)) for request in await sent(ring)] == [(0, most), (most * 8, 1)]


@pytest.mark.parametrize("sectors", [89, 96, 97, 8 * 44 - 1, 8 * 44])
async def test_an_indirect_read_and_write(ring: Ring, caller: Caller, sectors: int) -> None:
    """More segments than a slot holds are described in a page of their own; the data gets to its place both ways, and
    the response has the inner operation (T31)."""
    disk, data = RingDisk(GEOMETRY), on_disk(5, sectors)
    ring.attach(disk, indirect=256)
    disk.write(512, memoryview(data), False, caller.done("write"))
    disk.read(1024, sectors * 512, caller.read_done("read"))
    write, read = await sent(ring)
    assert (write.op, write.sector, write.sectors) == (WRITE, 1, sectors)
    assert (read.op, read.sector, read.sectors) == (READ, 2, sectors)
    assert ring.data(write) == data
    assert not set(write.grefs) & set(read.grefs)
    ring.succeed(write, read)
    ring.drain()
    assert caller.ends == [("write", 0), ("read", 0)]
    assert caller.data["read"] == on_disk(2, sectors)
    assert all(ring.pages.pool.free)


async def test_large_and_small_requests_share_the_pages(ring: Ring, caller: Caller) -> None:
    """What finds no pages waits, and what comes after it waits behind it; each has its own, and all come back."""
    disk = RingDisk(GEOMETRY)
    ring.attach(disk, indirect=256)
    for number in range(12):
        disk.read(number << 20, 44 * 4096, caller.read_done(str(number)))
        disk.read((number << 20) + (1 << 19), 512, caller.read_done(f"{number}+"))
    seen: list[Request] = []
    while len(seen) < 24:
        batch = await sent(ring)
        grefs = [gref for request in batch for gref in request.grefs]
        assert batch
        assert len(set(grefs)) == len(grefs)
        ring.succeed(*batch)
        ring.drain()
        seen += batch
    assert [request.sector for request in seen] == sorted(request.sector for request in seen)
    assert [error for _, error in caller.ends] == [0] * 24
    assert all(caller.data[str(number)] == on_disk(number << 11, 352) for number in range(12))
    assert all(ring.pages.pool.free)


async def test_a_large_request_left_for_a_backend_that_takes_none_such(ring: Ring, caller: Caller) -> None:
    """It is split for the new ring; its caller hears once, with all of its data."""
    disk, data = RingDisk(GEOMETRY), on_disk(0, 352)
    ring.attach(disk, indirect=256)
    disk.read(0, 44 * 4096, caller.read_done("read"))
    disk.write(1 << 20, memoryview(data), False, caller.done("write"))
    disk.flush(caller.done("flush"))
    assert len(await sent(ring)) == 3
    disk.detach()
    next_ring = Ring()
    next_ring.attach(disk, replace(GEOMETRY, flush_op=WRITE_BARRIER))
    again = next_ring.requests()
    assert [request.op for request in again] == [READ] * 4 + [WRITE] * 4 + [WRITE_BARRIER]
    assert b"".join(next_ring.data(request) for request in again[4:8]) == data
    next_ring.succeed(*again)
    next_ring.drain()
    assert caller.ends == [("read", 0), ("write", 0), ("flush", 0)]
    assert caller.data["read"] == data
