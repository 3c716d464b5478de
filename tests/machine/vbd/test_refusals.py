"""Invalid requests, pages and rings: each is refused by itself, and the disk keeps working."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
    X86_64,
    HandDisk,
    Layout,
)
from tests.doubles.served_image import GRANTS, LAYOUTS, SECTORS, attached, contents, error_node
from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.ring.layout import REQ_PROD
from xenbusd.testing import Machine

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
