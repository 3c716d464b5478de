"""The disk pair on a simulated machine: every operation in both layouts, every refusal, every way that it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.disk_pair import DEVID, pair
from tests.doubles.echo import GUEST
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
    X86_32,
    X86_64,
    HandDisk,
    Layout,
)
from tests.doubles.nbd_client import NbdClient
from xenbusd import toolstack
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.errors import OtherendTimeout
from xenbusd.ids import DOM0, Domid
from xenbusd.ring.layout import REQ_PROD
from xenbusd.testing import Machine, Peer
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_vbd import frontend as vbd_frontend
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.image import opening
from xenbusd_vbd.image.buffered import FileEngine
from xenbusd_vbd.nbd import wire

SECTORS = 2048
SIZE = SECTORS * SECTOR

LAYOUTS = pytest.mark.parametrize("layout", [X86_64, X86_32], ids=lambda layout: layout.name)
GRANTS = pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "copied"])


def contents(size: int = SIZE) -> bytes:
    """A disk full of what does not compress, the same each time."""
    return random.Random(0x5EED).randbytes(size)


@pytest.fixture(params=["file", "memory file", "loop device"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB to serve: a file on a device, one on tmpfs, and a block device where we may make one."""
    if request.param == "memory file":
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("there is no tmpfs at /dev/shm")
        path = Path(f"/dev/shm/xenbusd-test-{os.getpid()}.img")
    else:
        path = tmp_path / "disk.img"
    path.write_bytes(contents())
    if request.param != "loop device":
        yield path
        path.unlink()
        return
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 1 MiB in a file."""
    path = tmp_path / "disk.img"
    path.write_bytes(contents())
    return path


async def attached(machine: Machine, params: Path | str, mode: str = "w", **keys: str) -> Peer:
    """Start a backend, a guest, and a disk whose frontend is driven by hand."""
    await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=DEVID))
    back = {key.replace("_", "-"): value for key, value in keys.items()}
    await machine.attach(peer.id, {"params": str(params), "mode": mode, **back})
    return peer


async def error_node(machine: Machine, id: DeviceId) -> bytes:
    """What the backend has left in its error node."""
    return await machine.read(id.error_path(Side.BACKEND)) or b"nothing"


# -- the data path, by hand --------------------------------------------------------------------------------------------


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


# -- requests that cannot be -------------------------------------------------------------------------------------------

Bad = tuple[str, Callable[[HandDisk], bytes], int, int]
"""A name, what makes the slot, and the operation and the status that its answer must have."""

REFUSED: list[Bad] = [
    ("a start behind the end", lambda d: d.layout.rw(READ, d.id(), SECTORS, d.segments(1)), READ, ERROR),
    ("an end behind the end", lambda d: d.layout.rw(WRITE, d.id(), SECTORS - 7, d.segments(8)), WRITE, ERROR),
    ("a wrap", lambda d: d.layout.rw(READ, d.id(), 2**64 - 1, d.segments(2)), READ, ERROR),
    ("a barrier behind the end", lambda d: d.layout.rw(BARRIER, d.id(), SECTORS, d.segments(1)), BARRIER, ERROR),
    ("last above 7", lambda d: d.layout.rw(READ, d.id(), 0, [(d.grefs[0], 0, 8)]), READ, ERROR),
    ("last of 255", lambda d: d.layout.rw(WRITE, d.id(), 0, [(d.grefs[0], 0, 255)]), WRITE, ERROR),
    ("first above last", lambda d: d.layout.rw(READ, d.id(), 0, [(d.grefs[0], 5, 4)]), READ, ERROR),
    (
        "lengths that cancel out",
        lambda d: d.layout.rw(READ, d.id(), 0, [(d.grefs[0], 7, 0), (d.grefs[1], 0, 7)]),
        READ,
        ERROR,
    ),
    ("no segments", lambda d: d.layout.rw(READ, d.id(), 0), READ, ERROR),
    ("a write of nothing", lambda d: d.layout.rw(WRITE, d.id(), 0), WRITE, ERROR),
    ("twelve segments", lambda d: d.layout.rw(READ, d.id(), 0, d.segments(88), count=12), READ, ERROR),
    ("255 segments", lambda d: d.layout.rw(WRITE, d.id(), 0, d.segments(88), count=255), WRITE, ERROR),
    ("a grant that is none", lambda d: d.layout.rw(READ, d.id(), 0, [(4_000_000, 0, 7)]), READ, ERROR),
    (
        "one bad grant among good ones",
        lambda d: d.layout.rw(WRITE, d.id(), 0, [*d.segments(8), (4_000_000, 0, 7)]),
        WRITE,
        ERROR,
    ),
    ("operation 4", lambda d: d.layout.rw(4, d.id(), 0, d.segments(8)), 4, EOPNOTSUPP),
    ("operation 7", lambda d: d.layout.rw(7, d.id(), 0), 7, EOPNOTSUPP),
    ("operation 255", lambda d: d.layout.rw(255, d.id(), 0, d.segments(8)), 255, EOPNOTSUPP),
    ("an indirect flush", lambda d: d.layout.indirect(FLUSH, d.id(), 0, 1, d.grefs[:1]), FLUSH, ERROR),
    ("an indirect discard", lambda d: d.layout.indirect(DISCARD, d.id(), 0, 1, d.grefs[:1]), DISCARD, ERROR),
    ("an indirect read of nothing", lambda d: d.layout.indirect(READ, d.id(), 0, 0, d.grefs[:1]), READ, ERROR),
    ("257 segments", lambda d: d.layout.indirect(WRITE, d.id(), 0, 257, d.grefs[:1]), WRITE, ERROR),
    ("65535 segments", lambda d: d.layout.indirect(READ, d.id(), 0, 65535, d.grefs[:8]), READ, ERROR),
    ("descriptors in no page", lambda d: d.layout.indirect(READ, d.id(), 0, 12, [4_000_000]), READ, ERROR),
    (
        "an indirect write behind the end",
        lambda d: d.layout.indirect(WRITE, d.id(), SECTORS - 8, 2, [d.describe(d.segments(16), 22)]),
        WRITE,
        ERROR,
    ),
    (
        "a bad segment far behind",
        lambda d: d.layout.indirect(WRITE, d.id(), 0, 13, [d.describe([*d.segments(96), (d.grefs[0], 7, 9)], 22)]),
        WRITE,
        ERROR,
    ),
    ("a discard behind the end", lambda d: d.layout.discard(d.id(), SECTORS - 1, 2), DISCARD, ERROR),
    ("a discard that wraps", lambda d: d.layout.discard(d.id(), 8, 2**64 - 1), DISCARD, ERROR),
    ("a secure discard", lambda d: d.layout.discard(d.id(), 0, 8, flag=1), DISCARD, EOPNOTSUPP),
]


@LAYOUTS
@GRANTS
async def test_what_cannot_be_is_refused_one_by_one(
    machine: Machine, image: Path, layout: Layout, persistent: bool
) -> None:
    """T32, T33: each bad request is answered with its own id, its operation and the right status; the disk is as it
    was, and the next good request is done."""
    peer = await attached(machine, image)
    disk = await HandDisk.connect(peer, layout, persistent=persistent)
    was = contents()
    for name, make, op, status in REFUSED:
        assert await disk.status(make(disk), op) == status, name
        assert await disk.read(8, 8) == was[8 * SECTOR : 16 * SECTOR], name
    slots = [make(disk) for _, make, _, _ in REFUSED]  # all at once, good ones in between
    good = [layout.rw(READ, disk.id(), 8, [(disk.grefs[23], 0, 7)]) for _ in range(8)]
    answers = await disk.ask(*slots[:11], *good[:4], *slots[11:20])
    answers |= await disk.ask(*slots[20:], *good[4:])
    assert list(answers.values()).count((READ, OKAY)) == len(good)
    await disk.leave()
    assert image.read_bytes() == was
    assert machine.holdings(GUEST) == (GUEST, 1, 0, 0, 0, 0)


@GRANTS
async def test_a_page_that_is_taken_back(machine: Machine, image: Path, persistent: bool) -> None:
    """A grant that is revoked before its request is done fails that request, and no other in the batch."""
    peer = await attached(machine, image)
    disk = await HandDisk.connect(peer, persistent=persistent)
    gone = peer.process.host.grants.share(DOM0, 1)
    gone.unshare()
    bad, good = disk.id(), disk.id()
    answers = await disk.ask(
        X86_64.rw(READ, bad, 0, [(gone.grefs[0], 0, 7)]), X86_64.rw(READ, good, 0, [(disk.grefs[0], 0, 7)])
    )
    assert answers == {bad: (READ, ERROR), good: (READ, OKAY)}
    await disk.leave()


@GRANTS
async def test_a_page_that_may_not_be_written_to(machine: Machine, image: Path, persistent: bool) -> None:
    """A read into a page that was granted read-only fails; persistent grants are mapped for writing always (T36)."""
    peer = await attached(machine, image)
    disk = await HandDisk.connect(peer, persistent=persistent)
    page = peer.process.host.grants.share(DOM0, 1, writable=False)
    slot = X86_64.rw(READ, disk.id(), 0, [(page.grefs[0], 0, 7)])
    assert await disk.status(slot, READ) == ERROR
    assert await disk.read(0, 8) == contents()[:PAGE]
    page.unshare()
    await disk.leave()


async def test_a_ring_that_lies_ends_the_connection(machine: Machine, image: Path) -> None:
    """T32: a producer more than the ring ahead is reported and not answered; the disk may be connected anew."""
    peer = await attached(machine, image)
    disk = await HandDisk.connect(peer)
    await disk.read(0, 8)
    disk.ring.words[REQ_PROD] = 4_000_000
    disk.ring.notify()
    await peer.until(State.CLOSING)
    assert b"req_prod 4000000" in await error_node(machine, peer.id)
    assert machine.holdings(GUEST).grants_mapped == 0
    await peer.write(State.CLOSED)
    await peer.until(State.CLOSED)
    disk.close()
    await peer.write(State.INITIALISING)
    disk = await HandDisk.connect(peer)
    assert await disk.read(0, 8) == contents()[:PAGE]
    await disk.leave()


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


# -- read-only, flush, barrier, discard --------------------------------------------------------------------------------


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


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "code", "sentence"),
    [
        ("{tmp}/none.img", errno.ENOENT, "cannot open {tmp}/none.img: No such file or directory"),
        ("{tmp}", None, "{tmp}"),
        ("/dev/null", errno.EINVAL, "/dev/null is neither a regular file nor a block device"),
        ("tar:{tmp}/disk.img", errno.EINVAL, "tar"),
        ("disk.img", errno.EINVAL, "write an absolute path, as in raw:/srv/disk.img"),
        ("", errno.EINVAL, "write an absolute path"),
    ],
    ids=["missing", "folder", "no disk", "format", "relative", "empty"],
)
@pytest.mark.parametrize("mode", ["w", "r"])
async def test_a_target_that_cannot_be_served(
    machine: Machine, tmp_path: Path, image: Path, params: str, code: int | None, sentence: str, mode: str
) -> None:
    """A target that is missing, no disk, or of another format: the error node says which and why, the toolstack repeats
    it, and the device closes. When the cause is mended, a frontend that begins again gets its disk."""
    peer = await attached(machine, params.format(tmp=tmp_path), mode)
    offered = asyncio.create_task(_offer(peer))
    with pytest.raises(OtherendTimeout, match=r"does not connect: the backend in domain 0 reports: \d+ "):
        await toolstack.wait_connected(machine.store, peer.id, deadline_s=DEADLINE_S)
    error = (await error_node(machine, peer.id)).decode()
    assert sentence.format(tmp=tmp_path) in error
    assert code is None or error.startswith(f"{code} ")
    with await offered:
        await peer.write(State.CLOSED)
        await peer.until(State.CLOSED)
    await machine.write(peer.otherend_path, params=str(image))
    await peer.write(State.INITIALISING)
    disk = await HandDisk.connect(peer)
    assert await disk.read(0, 8) == contents()[:PAGE]
    await peer.process.settle()
    assert await error_node(machine, peer.id) == b"nothing"
    await disk.leave()


async def _offer(peer: Peer) -> Any:
    await peer.until(State.INIT_WAIT)
    return await peer.offer(X86_64.ring, protocol=X86_64.name)


async def test_a_target_in_use(machine: Machine, image: Path) -> None:
    """A second disk on an image that is written to is refused, with a way out; `w!` shares it, and readers share."""
    first = await attached(machine, image)
    disk = await HandDisk.connect(first)
    guest = await machine.start(Domid(6))
    for devid, mode, refused in ((1, "w", True), (2, "r", True), (3, "w!", False)):
        peer = Peer(guest, machine.id("vbd", 6, devid))
        await machine.attach(peer.id, {"params": f"raw:{image}", "mode": mode})
        if refused:
            with await _offer(peer):
                await peer.until(State.CLOSING)
                error = await error_node(machine, peer.id)
                assert error.startswith(b"16 ")
                assert b"is in use by another device or program; mode w! shares it" in error
                await peer.write(State.CLOSED)
                await peer.until(State.CLOSED)
        else:
            shared = await HandDisk.connect(peer)
            assert await shared.read(0, 8) == contents()[:PAGE]
            await shared.leave()
    assert await disk.read(0, 8) == contents()[:PAGE]
    await disk.leave()
    # The lock went with the connection: now two may read.
    readers = []
    for devid in (4, 5):
        peer = Peer(guest, machine.id("vbd", 6, devid))
        await machine.attach(peer.id, {"params": str(image), "mode": "r"})
        readers.append(await HandDisk.connect(peer))
    for reader in readers:
        assert await reader.read(0, 8) == contents()[:PAGE]
        await reader.leave()


@GRANTS
async def test_an_image_that_shrinks_under_us(machine: Machine, image: Path, persistent: bool) -> None:
    """When somebody truncates the image, reads behind its new end fail and those before it do not; the daemon lives."""
    peer = await attached(machine, image)
    disk = await HandDisk.connect(peer, persistent=persistent)
    os.truncate(image, SIZE // 2)
    for sector, status in ((0, OKAY), (SECTORS // 2 - 8, OKAY), (SECTORS // 2, ERROR), (SECTORS // 2 - 4, ERROR)):
        assert await disk.status(X86_64.rw(READ, disk.id(), sector, disk.segments(8)), READ) == status
    assert await peer.read("state") == b"4"
    await disk.leave()


@pytest.mark.parametrize(
    ("keys", "info"), [({}, 0), ({"removable": "1"}, 2), ({"device_type": "cdrom"}, 1), ({"removable": "0"}, 0)]
)
async def test_what_kind_of_disk_it_is(machine: Machine, image: Path, keys: dict[str, str], info: int) -> None:
    """T38: `info` says cdrom, removable and read-only, from the backend's own directory."""
    peer = await attached(machine, image, **keys)
    disk = await HandDisk.connect(peer)
    assert await peer.read("info") == b"%d" % info
    await disk.leave()


# -- both real ends ----------------------------------------------------------------------------------------------------


async def test_the_pair_moves_data(machine: Machine, target: Path) -> None:
    """Large reads and writes are split and put together again; flush, FUA and trim are done; the image has it all."""
    image = bytearray(contents())
    async with pair(machine, target) as disk:
        assert disk.queue.size_bytes == SIZE
        assert await disk.read(0, SIZE) == image
        parts = [(SIZE // 8 * n, random.Random(n).randbytes(SIZE // 8)) for n in range(8)]
        assert await asyncio.gather(*(disk.write(at, data) for at, data in parts)) == [0] * 8
        for at, data in parts:
            image[at : at + len(data)] = data
        assert await disk.write(4096, b"x" * 512, fua=True) == 0
        image[4096:4608] = b"x" * 512
        assert await disk.do(disk.queue.flush) == 0
        assert await disk.read(0, SIZE) == image
        if disk.queue.can_trim:
            assert await disk.do(disk.queue.trim, 8192, 16384) == 0
            image[8192 : 8192 + 16384] = bytes(16384)
            assert await disk.read(0, 32768) == image[:32768]
    assert target.read_bytes() == image


async def test_the_pair_seen_by_an_nbd_client(machine: Machine, image: Path) -> None:
    """A program in the guest finds the disk at the device's socket, which is gone with the device."""
    async with pair(machine, image) as disk:
        path = Path(disk.guest.services.run_dir) / f"vbd-{DEVID}.sock"
        client = await NbdClient.connect(str(path))
        client.lengths[1] = PAGE
        client.writer.write(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.Command.READ, 1, 65536, PAGE))
        magic, error, handle = wire.SIMPLE_REPLY.unpack(await client.reader.readexactly(wire.SIMPLE_REPLY.size))
        assert (magic, error, handle) == (wire.SIMPLE_REPLY_MAGIC, 0, 1)
        assert await client.reader.readexactly(PAGE) == contents()[65536 : 65536 + PAGE]
        client.writer.close()
    assert not path.exists()


async def test_a_read_only_pair(machine: Machine, image: Path) -> None:
    """The frontend learns from `info` that nothing can be written, and the backend would refuse it all the same."""
    async with pair(machine, image, "r") as disk:
        assert disk.queue.read_only
        assert await disk.read(0, PAGE) == contents()[:PAGE]
        assert await disk.write(0, bytes(PAGE)) == errno.EIO
    assert image.read_bytes() == contents()


async def test_requests_outlive_a_backend_that_is_stopped(machine: Machine, image: Path) -> None:
    """Requests made while the backend daemon is replaced are done by the next one, in the same ring: neither end's
    state ever changes."""
    image_bytes = bytearray(contents())
    async with pair(machine, image) as disk:
        first = [asyncio.create_task(disk.read(PAGE * n, PAGE)) for n in range(100)]
        await disk.back.stop()
        more = [asyncio.create_task(disk.write(PAGE * n, bytes([n]) * PAGE)) for n in range(100)]
        await disk.guest.settle()
        assert not any(task.done() for task in more)
        await machine.start(DOM0, VbdBackend)
        reads = await asyncio.gather(*first)
        assert await asyncio.gather(*more) == [0] * 100
        for n in range(100):
            # A read may have met the new data only if it was still waiting when the write was made.
            assert reads[n] in (bytes(image_bytes[PAGE * n : PAGE * (n + 1)]), bytes([n]) * PAGE)
            image_bytes[PAGE * n : PAGE * (n + 1)] = bytes([n]) * PAGE
        assert await disk.read(0, SIZE) == image_bytes
        assert disk.guest.states(disk.id, "frontend") == ["Initialising", "Initialised", "Connected"]
    assert image.read_bytes() == image_bytes


@pytest.mark.parametrize("journal", ["kept", "lost"])
async def test_requests_outlive_a_backend_that_is_killed(
    machine: Machine, image: Path, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    """The next backend goes on with the ring. Without its journal the pair begins again, and what had no answer is sent
    again through the new ring, before anything newer: the frontend keeps a shadow of each request."""
    monkeypatch.setattr(vbd_frontend, "SETTLE_S", 0.01)  # nobody will answer what is in the old ring
    ordered = {"direct": False}  # writes to one place under way together have no order but that of this engine
    async with pair(machine, image, back=ordered) as disk:
        await disk.back.kill()
        in_ring = [asyncio.create_task(disk.write(PAGE * 200, bytes([n]) * PAGE)) for n in range(32)]
        tasks = [asyncio.create_task(disk.write(PAGE * n, bytes([n]) * PAGE)) for n in range(100)]
        overwrites = [asyncio.create_task(disk.write(PAGE * n, bytes([n + 100]) * PAGE)) for n in range(50)]
        await disk.guest.settle()
        assert not any(task.done() for task in in_ring + tasks)
        if journal == "lost":
            Path(disk.back.services.run_dir, f"{disk.id.log_name}.ring").unlink()
        await machine.start(DOM0, VbdBackend, options={"vbd": ordered})
        assert await asyncio.gather(*in_ring, *tasks, *overwrites) == [0] * 182
        assert await disk.read(PAGE * 200, PAGE) == bytes([31]) * PAGE
        written = b"".join(bytes([n + 100 if n < 50 else n]) * PAGE for n in range(100))
        assert await disk.read(0, len(written)) == written
        assert disk.guest.states(disk.id, "frontend").count("Connected") == {"kept": 1, "lost": 2}[journal]


async def test_requests_outlive_a_reconnect(machine: Machine, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that closes and comes back, while `online` is 1, loses no request: programs notice nothing."""
    monkeypatch.setattr(vbd_frontend, "SETTLE_S", 0.01)
    async with pair(machine, image) as disk:
        for round in range(3):
            tasks = [asyncio.create_task(disk.read(PAGE * n, PAGE)) for n in range(100)]
            await machine.write(disk.id.backend_path, state="5")
            assert b"".join(await asyncio.gather(*tasks)) == contents()[: 100 * PAGE]
            await disk.guest.until(
                lambda connections=round + 2: disk.guest.states(disk.id, "frontend").count("Connected") == connections  # type: ignore[misc]
            )
        assert await disk.read(0, SIZE) == contents()


async def test_requests_without_a_disk_fail(machine: Machine, image: Path) -> None:
    """When the device is detached for good, whatever comes too late is told so, and nobody is left waiting."""
    async with pair(machine, image) as disk:
        queue = disk.queue
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    queue.flush(done.set_result)
    async with asyncio.timeout(DEADLINE_S):
        assert await done == errno.ENODEV


async def test_the_frontend_dies_in_the_middle_of_io(machine: Machine, image: Path) -> None:
    """A domain that is destroyed with a ring full of requests leaves no page mapped and no lock; another disk of the
    same backend works on, and so does the next one on the same image."""
    other_image = image.with_name("other.img")
    other_image.write_bytes(contents())
    async with pair(machine, other_image) as other:
        guest = await machine.start(Domid(6))
        peer = Peer(guest, machine.id("vbd", 6, DEVID))
        await machine.attach(peer.id, {"params": str(image), "mode": "w"})
        disk = await HandDisk.connect(peer, persistent=True)
        disk.ring.send(*(X86_64.rw(READ, disk.id(), 8 * n, [(disk.grefs[n % 24], 0, 7)]) for n in range(32)))
        await guest.kill()
        await machine.until(peer.id, backend=State.CLOSED, frontend=State.UNKNOWN)
        assert machine.holdings(Domid(6)) == (6, 0, 0, 0, 0, 0)
        assert await other.read(0, SIZE) == contents()
        await machine.detach(peer.id, force=True)
        again = Peer(await machine.start(Domid(6)), peer.id)
        await machine.attach(again.id, {"params": str(image), "mode": "w"})
        disk = await HandDisk.connect(again)
        assert await disk.read(0, 8) == contents()[:PAGE]
        await disk.leave()
        await machine.detach(again.id)
        await again.process.kill()
