"""Read-only disks, flushes, barriers and discards, with a frontend driven by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.doubles.hand_disk import (
    BARRIER,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH,
    OKAY,
    PAGE,
    READ,
    SECTOR,
    WRITE,
    HandDisk,
    Layout,
)
from tests.doubles.served_image import LAYOUTS, attached, contents
from xenbusd.bus.state import State
from xenbusd.testing import Machine
from xenbusd_vbd.image import opening
from xenbusd_vbd.image.buffered import FileEngine


@LAYOUTS
async def test_a_read_only_disk(machine: Machine, target: Path, layout: Layout) -> None:
    """T38, XSA-142: `mode` without w opens the image read-only, `info` says so, and every request that would change
    something is refused."""
    peer = await attached(machine, target, "r")
    disk = await HandDisk.connect(peer, layout)
    assert int(await peer.read("info") or b"") & 4
    assert await peer.read("feature-discard") in (None, b"0")
    opened = [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, target)]
    assert {_flags(fd) & os.O_ACCMODE for fd in opened} == {os.O_RDONLY}
    assert await disk.read(0, 8) == contents()[:PAGE]
    for op in (WRITE, BARRIER):
        assert await disk.write(0, bytes(PAGE), op=op) == ERROR
    for op in (BARRIER, FLUSH):
        assert await disk.status(layout.rw(op, disk.id(), 0), op) == ERROR
    assert await disk.status(layout.discard(disk.id(), 0, 8), DISCARD) == ERROR
    await disk.leave()
    assert target.read_bytes() == contents()


def _leads_to(fd: str, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except FileNotFoundError:
        return False


def _flags(fd: str) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))


@LAYOUTS
async def test_barriers_keep_the_order(machine: Machine, target: Path, layout: Layout) -> None:
    """T37: a barrier comes after every request before it and before every one after it, though all are sent at once."""
    peer = await attached(machine, target)
    disk = await HandDisk.connect(peer, layout, persistent=True)
    for number, byte in enumerate((b"a", b"b", b"c", b"d")):
        disk.data[number * PAGE : (number + 1) * PAGE] = byte * PAGE
    order: tuple[tuple[int, list[int]], ...] = (
        (WRITE, [0]),
        (BARRIER, [1]),
        (READ, [8]),
        (WRITE, [2]),
        (BARRIER, [3]),
        (READ, [9]),
        (BARRIER, []),
    )
    requests, expected = [], {}
    for _ in range(4):
        for op, pages in order:
            id = disk.id()
            expected[id] = (op, OKAY)
            requests.append(layout.rw(op, id, 64, [(disk.grefs[page], 0, 7) for page in pages]))
    assert await disk.ask(*requests) == expected
    assert bytes(disk.data[8 * PAGE : 9 * PAGE]) == b"b" * PAGE
    assert bytes(disk.data[9 * PAGE : 10 * PAGE]) == b"d" * PAGE
    assert await disk.read(64, 8) == b"d" * PAGE
    await disk.leave()


@LAYOUTS
async def test_a_flush_covers_what_was_written(
    machine: Machine, image: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush is one fdatasync; a barrier is one before its write and one after it; a plain write is none."""
    monkeypatch.setattr(opening, "DirectEngine", FileEngine)  # else the kernel does it, where nobody sees it
    flushed: list[int] = []
    sync = os.fdatasync

    def spy(fd: int) -> None:
        flushed.append(fd)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", spy)
    peer = await attached(machine, image)
    disk = await HandDisk.connect(peer, layout)
    counts = []
    for op, data in ((WRITE, bytes(PAGE)), (FLUSH, b""), (BARRIER, bytes(PAGE)), (WRITE, bytes(SECTOR))):
        assert await disk.write(0, data, op=op) == OKAY
        counts.append(len(flushed))
    assert counts == [0, 1, 3, 3]
    await disk.leave()


@LAYOUTS
async def test_a_discard_forgets_its_range(machine: Machine, target: Path, layout: Layout) -> None:
    """A range that was discarded reads as zeros, and nothing else has changed; `discard-enable` 0 takes it away."""
    peer = await attached(machine, target)
    disk = await HandDisk.connect(peer, layout)
    if await peer.read("feature-discard") != b"1":
        await disk.leave()
        pytest.skip(f"discards do not work on {target}")
    assert await peer.read("discard-granularity") == b"4096"
    assert await disk.status(layout.discard(disk.id(), 8, 16), DISCARD) == OKAY
    was = contents()
    assert await disk.read(0, 32) == was[: 8 * SECTOR] + bytes(16 * SECTOR) + was[24 * SECTOR : 32 * SECTOR]
    assert await disk.status(layout.discard(disk.id(), 0, 0), DISCARD) == OKAY
    await disk.leave()
    await machine.write(peer.otherend_path, discard_enable="0")
    await peer.write(State.INITIALISING)
    disk = await HandDisk.connect(peer, layout)
    assert await disk.status(layout.discard(disk.id(), 8, 16), DISCARD) == EOPNOTSUPP
    await disk.leave()
