"""The disk's data path, with a frontend driven by hand: reads, writes and indirect requests, in both layouts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.doubles.echo import GUEST
from tests.doubles.hand_disk import (
    FLUSH,
    OKAY,
    PAGE,
    READ,
    SECTOR,
    WRITE,
    X86_32,
    X86_64,
    HandDisk,
    Layout,
)
from tests.doubles.served_image import GRANTS, LAYOUTS, SECTORS, SIZE, attached, contents, error_node
from xenbusd.bus.state import State
from xenbusd.testing import Machine


@LAYOUTS
@GRANTS
async def test_reads_and_writes(machine: Machine, target: Path, layout: Layout, persistent: bool) -> None:
    """Reads bring what is on the disk, writes change exactly what they name; segments may be parts of pages, in any
    order of pages."""
    peer = await attached(machine, target)
    disk = await HandDisk.connect(peer, layout, persistent=persistent)
    was = contents()
    assert await peer.read("sectors") == b"%d" % SECTORS
    assert await disk.read(0, 88) == was[: 88 * SECTOR]
    assert await disk.read(SECTORS - 1, 1) == was[-SECTOR:]
    new = random.Random(1).randbytes(44 * 1024)
    assert await disk.write(100, new) == OKAY
    assert await disk.read(100, 88) == new
    # Sectors 2 to 5 of page 3, then sector 7 of page 1, then page 0: thirteen sectors in a row on the disk.
    pieces = [(3, 2, 5), (1, 7, 7), (0, 0, 7)]
    disk.data[:] = random.Random(2).randbytes(len(disk.data))
    expected = b"".join(
        bytes(disk.data[page * PAGE + first * SECTOR : page * PAGE + (last + 1) * SECTOR])
        for page, first, last in pieces
    )
    segments = [(disk.grefs[page], first, last) for page, first, last in pieces]
    assert await disk.status(layout.rw(WRITE, disk.id(), 1000, segments), WRITE) == OKAY
    assert await disk.read(1000, 13) == expected
    untouched = random.Random(3).randbytes(len(disk.data))
    disk.data[:] = untouched
    assert await disk.status(layout.rw(READ, disk.id(), 1000, segments), READ) == OKAY
    after = bytearray(untouched)
    at = 0
    for page, first, last in pieces:
        length = (last - first + 1) * SECTOR
        after[page * PAGE + first * SECTOR : page * PAGE + first * SECTOR + length] = expected[at : at + length]
        at += length
    assert bytes(disk.data) == after
    assert await disk.status(layout.rw(FLUSH, disk.id(), 0), FLUSH) == OKAY
    await disk.leave()
    image = bytearray(was)
    image[100 * SECTOR : 100 * SECTOR + len(new)] = new
    image[1000 * SECTOR : 1013 * SECTOR] = expected
    assert target.read_bytes() == image


@pytest.mark.parametrize(("order", "slots"), [(None, 32), (1, 64), (2, 128)])
@GRANTS
async def test_rings_of_several_pages(
    machine: Machine, image: Path, order: int | None, slots: int, persistent: bool
) -> None:
    """A ring of two or four pages has two or four times the slots, and all of them can be in use at once, again and
    again."""
    peer = await attached(machine, image)
    disk = await HandDisk.connect(peer, order=order, persistent=persistent)
    assert disk.ring.end.size == slots
    was = contents()
    for round in range(3):
        ids = [disk.id() for _ in range(slots)]
        requests = [X86_64.rw(READ, id, 8 * (round + n), [(disk.grefs[n % 24], 0, 7)]) for n, id in enumerate(ids)]
        answers = await disk.ask(*requests)
        assert answers == dict.fromkeys(ids, (READ, OKAY))
    for n in range(slots - 24, slots):  # the last to use each page
        sector = 8 * (2 + n)
        page = PAGE * (n % 24)
        assert bytes(disk.data[page : page + PAGE]) == was[sector * SECTOR : (sector + 8) * SECTOR]
    await disk.leave()
    assert machine.holdings(GUEST) == (GUEST, 1, 0, 0, 0, 0)


async def test_persistent_grants_stay_mapped_and_others_do_not(machine: Machine, image: Path) -> None:
    """T36: with `feature-persistent` at both ends a page stays mapped after its answer; without it only the ring is."""
    peer = await attached(machine, image)
    for persistent, mapped in ((False, 1), (True, 1 + 11)):
        disk = await HandDisk.connect(peer, persistent=persistent)
        for _ in range(3):
            await disk.read(0, 88)
        assert machine.holdings(GUEST).grants_mapped == mapped
        await disk.leave()
        assert machine.holdings(GUEST).grants_mapped == 0
        await peer.write(State.INITIALISING)


async def test_a_frontend_that_does_not_say_its_layout(machine: Machine, image: Path) -> None:
    """T29: without `protocol` the slots are x86_32's, even in a 64-bit guest."""
    peer = await attached(machine, image)
    ring = await peer.connect(X86_32.ring)
    disk = HandDisk(peer, ring, X86_32)
    assert await disk.read(16, 8) == contents()[16 * SECTOR : 24 * SECTOR]
    await disk.leave()


async def test_a_layout_that_we_do_not_know(machine: Machine, image: Path) -> None:
    """T29: an unknown `protocol` is fatal, with an error that names those that are known."""
    peer = await attached(machine, image)
    await peer.until(State.INIT_WAIT)
    with await peer.offer(X86_64.ring, protocol="arm-abi"):
        await peer.until(State.CLOSING)
        assert await error_node(machine, peer.id) == (
            b"22 /local/domain/5/device/vbd/51712/protocol holds 'arm-abi', which is no one of x86_64-abi, x86_32-abi"
        )
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)


@LAYOUTS
@GRANTS
async def test_indirect_requests(machine: Machine, target: Path, layout: Layout, persistent: bool) -> None:
    """T31: a request of more segments than a slot holds has its descriptors in a page; the answer carries the inner
    operation. Parts of pages and pages in any order are as good as in a slot."""
    peer = await attached(machine, target)
    disk = await HandDisk.connect(peer, layout, persistent=persistent)
    assert await peer.read("feature-max-indirect-segments") == b"256"
    was = contents()
    read = layout.indirect(READ, disk.id(), 8, 20, [disk.describe(disk.segments(160), 22)])
    assert await disk.status(read, READ) == OKAY
    assert disk.data[: 160 * SECTOR] == was[8 * SECTOR : 168 * SECTOR]
    disk.data[: 16 * PAGE] = new = random.Random(7).randbytes(16 * PAGE)
    backwards = [(disk.grefs[page], 2, 5) for page in reversed(range(16))]
    write = layout.indirect(WRITE, disk.id(), 0, 16, [disk.describe(backwards, 22)])
    assert await disk.status(write, WRITE) == OKAY
    parts = [new[page * PAGE + 2 * SECTOR : page * PAGE + 6 * SECTOR] for page in reversed(range(16))]
    assert await disk.read(0, 64) == b"".join(parts)
    await disk.leave()
    assert target.read_bytes()[:SIZE] == b"".join(parts) + was[64 * SECTOR :]
