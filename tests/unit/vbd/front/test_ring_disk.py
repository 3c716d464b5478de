"""The disk that is made of rings: its requests, its units, and how it ends."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace

import pytest

from tests.doubles.backend_rings import GEOMETRY, MOST, SLOTS, Caller, Ring, on_disk, sent
from xenbusd_vbd.front.ring_disk import RingDisk
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    READ,
    WRITE,
    WRITE_BARRIER,
)

# -- one request -------------------------------------------------------------------------------------------------------


async def test_a_read(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """13 sectors are one request for a whole page and five sectors of the next; the data reaches the caller."""
    disk.read(100 * 512, 13 * 512, caller.read_done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.firsts, request.lasts) == (READ, 100, (0, 0), (7, 4))
    ring.succeed(request)
    assert ring.drain()
    assert caller.ends == [("it", 0)]
    assert caller.data["it"] == on_disk(100, 13)
    assert not ring.drain()


async def test_a_write(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """The data is in the pages that the request names."""
    data = on_disk(7, 13)
    disk.write(100 * 512, memoryview(data), False, caller.done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.sectors) == (WRITE, 100, 13)
    assert ring.data(request) == data
    assert caller.ends == []
    ring.succeed(request)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_a_flush(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A flush has no segments."""
    disk.flush(caller.done())
    [request] = await sent(ring)
    assert (request.op, request.grefs) == (FLUSH_DISKCACHE, ())
    ring.succeed(request)
    ring.drain()
    assert caller.ends == [("it", 0)]


async def test_a_trim(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A trim is a discard, never a secure one."""
    disk.trim(8 * 512, 16 * 512, caller.done())
    [request] = await sent(ring)
    assert (request.op, request.sector, request.sectors, request.flag) == (DISCARD, 8, 16, 0)
    ring.succeed(request)
    ring.drain()
    assert caller.ends == [("it", 0)]


@pytest.mark.parametrize(("status", "code"), [(ERROR, errno.EIO), (EOPNOTSUPP, errno.EOPNOTSUPP), (77, errno.EIO)])
async def test_a_failure(ring: Ring, disk: RingDisk, caller: Caller, status: int, code: int) -> None:
    """Each status but OKAY, known or not, is an errno; a read that failed brings no data."""
    disk.read(0, 512, caller.read_done())
    [request] = await sent(ring)
    ring.answer((request.id, READ, status))
    ring.drain()
    assert caller.ends == [("it", code)]
    assert caller.data["it"] == b""
    assert ring.link.counters == {"requests": 1, "errors": 1}


async def test_what_is_counted(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Requests, and the bytes of those that succeeded."""
    disk.read(0, 1024, caller.read_done())
    disk.flush(caller.done())
    ring.succeed(*await sent(ring))
    ring.drain()
    assert ring.link.counters == {"requests": 2, "bytes": 1024}


# -- what the disk is like ---------------------------------------------------------------------------------------------


async def test_a_barrier_does_for_a_flush(ring: Ring, caller: Caller) -> None:
    """T37: where the backend has barriers alone, an empty one is the flush, also that of a write with FUA."""
    disk = RingDisk(GEOMETRY)
    ring.attach(disk, replace(GEOMETRY, flush_op=WRITE_BARRIER))
    assert disk.can_flush
    disk.flush(caller.done("flush"))
    disk.write(0, memoryview(bytes(512)), True, caller.done("fua"))
    flush, write = await sent(ring)
    assert (flush.op, flush.grefs, write.op) == (WRITE_BARRIER, (), WRITE)
    ring.succeed(flush, write)
    ring.drain()
    [after] = await sent(ring)
    assert (after.op, after.grefs) == (WRITE_BARRIER, ())
    ring.succeed(after)
    ring.drain()
    assert caller.ends == [("flush", 0), ("fua", 0)]


@pytest.mark.parametrize(
    ("offset", "length", "discarded"),
    [
        (0, 65536, [(15, 112)]),
        (7680, 57344, [(15, 112)]),
        (7680, 57344 - 512, [(15, 56)]),
        (8192, 32768, []),
        (7680, 512, []),
        (0, 512, []),
    ],
)
async def test_a_trim_keeps_to_whole_granules(
    ring: Ring, caller: Caller, offset: int, length: int, discarded: list[tuple[int, int]]
) -> None:
    """Granules of 28 KiB from 7.5 KiB on: parts of one are left alone, as Linux' block layer leaves them."""
    disk = RingDisk(GEOMETRY)
    ring.attach(disk, replace(GEOMETRY, discard_granularity=28672, discard_alignment=7680))
    disk.trim(offset, length, caller.done())
    requests = await sent(ring)
    assert [(request.sector, request.sectors) for request in requests if request.op == DISCARD] == discarded
    ring.succeed(*requests)
    ring.drain()
    assert caller.ends == [("it", 0)]


@pytest.mark.parametrize(
    ("sector", "physical", "sizes"),
    [
        (512, 512, (512, 4096)),
        (512, 4096, (512, 4096)),
        (512, 65536, (512, 65536)),
        (512, 5000, (512, 4096)),
        (512, 1 << 23, (512, 4096)),
        (2048, 2048, (2048, 4096)),
        (4096, 4096, (4096, 4096)),
    ],
)
async def test_the_units_of_a_disk(sector: int, physical: int, sizes: tuple[int, int]) -> None:
    """The backend's sector size binds; its physical one is preferred if it can be; ring units stay 512 (T35)."""
    disk = RingDisk(replace(GEOMETRY, sector_bytes=sector, physical_sector_bytes=physical))
    assert (disk.block_size, disk.preferred_size) == sizes
    assert disk.size_bytes == GEOMETRY.sectors * 512


async def test_another_size(ring: Ring, disk: RingDisk) -> None:
    """Only the size changes."""
    disk.resize(77)
    assert (disk.size_bytes, disk.can_trim, disk.kind) == (77 * 512, True, "disk")
    ring.attach(disk, replace(GEOMETRY, is_cdrom=True))
    assert (disk.size_bytes, disk.kind) == (1 << 33, "CD-ROM")


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_dying_fails_everything(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """What is in the ring, what waits for it, and what comes later: each hears ENODEV, once and in order."""
    for number in range(SLOTS + 2):
        disk.read(number * 4096, 512, caller.read_done(str(number)))
    await sent(ring)
    disk.die()
    disk.write(0, memoryview(bytes(2 * MOST)), True, caller.done("later"))
    assert caller.ends == [*((str(number), errno.ENODEV) for number in range(SLOTS + 2)), ("later", errno.ENODEV)]
    disk.die()
    assert len(caller.ends) == SLOTS + 3


async def test_settled(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """`settle` returns True once the last request is answered, and not before."""
    disk.read(0, 512, caller.read_done())
    disk.read(512, 512, caller.read_done())
    first, second = await sent(ring)
    settled = asyncio.ensure_future(disk.settle(60))
    ring.succeed(first)
    ring.drain()
    await asyncio.sleep(0)
    assert not settled.done()
    ring.succeed(second)
    ring.drain()
    assert await settled
    assert len(caller.ends) == 2


async def test_settling_covers_the_request_of_this_very_turn(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A request that is not in the ring yet is waited for as well."""

    async def ask_and_settle() -> bool:
        disk.flush(caller.done())
        return await disk.settle(60)

    settled = asyncio.ensure_future(ask_and_settle())
    await asyncio.sleep(0)
    [request] = await sent(ring)
    assert not settled.done()
    ring.succeed(request)
    ring.drain()
    assert await settled


async def test_nothing_to_settle(disk: RingDisk) -> None:
    """Without requests it is true at once."""
    assert await disk.settle(60)


async def test_not_settled_in_time(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """A backend that does not answer is waited for only until the deadline."""
    disk.read(0, 512, caller.read_done())
    await sent(ring)
    assert not await disk.settle(0)
    assert caller.ends == []


async def test_a_lost_ring_ends_the_settling(ring: Ring, disk: RingDisk, caller: Caller) -> None:
    """Once there is no ring, nothing is in it."""
    disk.read(0, 512, caller.read_done())
    await sent(ring)
    settled = asyncio.ensure_future(disk.settle(60))
    await asyncio.sleep(0)
    disk.detach()
    assert await settled
