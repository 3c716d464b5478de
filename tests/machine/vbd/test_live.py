"""A disk in use whose size, limits or pause change; and what the next daemon restores of that."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import GUEST
from tests.doubles.hand_disk import ERROR, OKAY, PAGE, READ, SECTOR, WRITE, X86_64, HandDisk
from xenbusd import toolstack
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.errors import OtherendTimeout
from xenbusd.ids import DOM0
from xenbusd.store.transaction import Transaction
from xenbusd.testing import Machine, Peer, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_vbd.back import live
from xenbusd_vbd.back.limits import Limits
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.image.raw import Image

SECTORS = 2048
SIZE = SECTORS * SECTOR


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 1 MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


async def disk_of(machine: Machine, image: Path) -> tuple[Process, Peer, HandDisk]:
    """A connected disk, and its backend's process."""
    dom0 = await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=51712))
    await machine.attach(peer.id, {"params": str(image), "mode": "w"})
    return dom0, peer, await HandDisk.connect(peer, persistent=True)


async def close(peer: Peer, disk: HandDisk) -> None:
    """Close from the frontend's side, and keep the pages until the backend has closed."""
    await peer.write(State.CLOSING)
    await peer.until(State.CLOSING)
    await peer.write(State.CLOSED)
    await peer.until(State.CLOSED)
    disk.close()


async def has(peer: Peer, key: str, value: bytes) -> None:
    """Wait until a key of the backend's has a value."""
    watch = await peer.store.watch(f"{peer.otherend_path}/{key}")
    async with asyncio.timeout(DEADLINE_S):
        while await peer.read(key) != value:
            await watch.wait()
    await watch.unwatch()


async def taken(dom0: Process, id: DeviceId, count: int) -> None:
    """Wait until the backend has taken so many requests from the ring."""
    await dom0.until(lambda: dom0.device(id).counters["requests"] == count)


# -- size --------------------------------------------------------------------------------------------------------------


async def test_an_image_that_grows(machine: Machine, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T34: `sectors` is written anew and then `state` with the value that it has, which is what a frontend looks at;
    what is behind the old end can be written at once."""
    monkeypatch.setattr(live, "SIZE_POLL_S", 0.01)
    _dom0, peer, disk = await disk_of(machine, image)
    watch = await peer.store.watch(f"{peer.otherend_path}/state")
    watch.take()
    os.truncate(image, 2 * SIZE)
    async with asyncio.timeout(DEADLINE_S):
        await watch.wait()
    assert await peer.read("state") == b"%d" % State.CONNECTED
    assert await peer.read("sectors") == b"%d" % (2 * SECTORS)
    assert await disk.write(2 * SECTORS - 8, b"x" * PAGE) == OKAY
    assert image.read_bytes()[-PAGE:] == b"x" * PAGE
    await watch.unwatch()
    await disk.leave()


async def test_an_image_that_shrinks(
    machine: Machine, image: Path, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    """No key can tell a guest of that: its requests behind the new end fail, the others do not, and the log says so."""
    monkeypatch.setattr(live, "SIZE_POLL_S", 0.01)
    dom0, peer, disk = await disk_of(machine, image)
    os.truncate(image, SIZE // 2)
    await dom0.until(lambda: any(line["event"] == "disk.failed" for line in logged))
    [reason] = [line["reason"] for line in logged if line["event"] == "disk.failed"]
    assert reason == f"the image has become smaller: {SECTORS // 2} sectors, and the guest knows {SECTORS}"
    assert await disk.write(SECTORS - 8, bytes(PAGE)) != OKAY
    assert await disk.write(0, bytes(PAGE)) == OKAY
    assert await peer.read("sectors") == b"%d" % SECTORS
    await disk.leave()


# -- detached by force -------------------------------------------------------------------------------------------------


async def remove_frontend(machine: Machine, peer: Peer) -> None:
    """What `xl block-detach --force` does."""

    async def body(tx: Transaction) -> None:
        await asyncio.gather(
            tx.rm(peer.path),
            tx.write(f"{peer.otherend_path}/online", b"0"),
            tx.write(f"{peer.otherend_path}/state", b"%d" % State.CLOSING),
        )

    await machine.store.transaction(body)


async def test_forced_detach_is_outlasted(machine: Machine, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frontend whose directory was taken away writes the rest, and gets its answers; once it is quiet, the backend is
    Closed."""
    monkeypatch.setattr(live, "QUIET_S", 0.5)
    dom0, peer, disk = await disk_of(machine, image)
    await remove_frontend(machine, peer)
    await dom0.until(lambda: dom0.device(peer.id).seen.otherend is State.UNKNOWN)
    for page in range(4):
        assert await disk.write(8 * page, b"%d" % page * PAGE) == OKAY
    await peer.until(State.CLOSED)
    assert image.read_bytes()[: 4 * PAGE] == b"".join(b"%d" % page * PAGE for page in range(4))
    disk.close()


async def test_forced_detach_ends(machine: Machine, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that never stops is served for a limited time."""
    monkeypatch.setattr(live, "FORCED_S", 0.1)
    _dom0, peer, disk = await disk_of(machine, image)

    async def write_for_ever() -> None:
        while True:
            await disk.write(0, bytes(PAGE))

    writing = asyncio.create_task(write_for_ever())
    await remove_frontend(machine, peer)
    await peer.until(State.CLOSED)
    writing.cancel()
    with suppress(asyncio.CancelledError):
        await writing
    disk.close()


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Requests and bytes a second of each limit as it takes effect."""
    took_effect: list[tuple[int, int]] = []
    was = Limits.set

    def spy(limits: Limits, requests_per_s: int, bytes_per_s: int, now: float) -> None:
        was(limits, requests_per_s, bytes_per_s, now)
        took_effect.append((requests_per_s, bytes_per_s))

    monkeypatch.setattr(Limits, "set", spy)
    return took_effect


async def test_a_limit_holds_requests_until_it_is_taken_away(
    machine: Machine, image: Path, limited: list[tuple[int, int]]
) -> None:
    """With a byte a second, one page is a debt for an hour; later requests are held, and begin without the limit."""
    dom0, peer, disk = await disk_of(machine, image)
    await toolstack.write_live(machine.store, peer.id, {"bandwidth": "1"})
    backend = dom0.device(peer.id)
    await dom0.until(lambda: len(limited) == 1)
    assert await disk.write(0, b"b" * PAGE) == OKAY
    held = asyncio.create_task(disk.write(8, b"c" * PAGE))
    await taken(dom0, peer.id, 2)
    assert backend.counters["bytes"] == PAGE
    await toolstack.write_live(machine.store, peer.id, {"bandwidth": "0"})
    assert await held == OKAY
    assert image.read_bytes()[PAGE : 2 * PAGE] == b"c" * PAGE
    await disk.leave()


async def test_a_limit_does_not_hold_up_the_end(machine: Machine, image: Path) -> None:
    """A frontend that closes gets its answers, whatever the limit."""
    dom0, peer, disk = await disk_of(machine, image)
    await toolstack.write_live(machine.store, peer.id, {"iops": "1"})
    slots = [X86_64.rw(WRITE, disk.id(), 0, disk.segments(8)) for _ in range(4)]
    asking = asyncio.create_task(disk.ask(*slots))
    await taken(dom0, peer.id, 4)
    await close(peer, disk)
    assert {status for _, status in (await asking).values()} == {OKAY}


async def test_a_limit_that_is_none(machine: Machine, image: Path) -> None:
    """Nonsense written by hand changes nothing, and the disk is served as before."""
    _dom0, peer, disk = await disk_of(machine, image)
    await machine.write(peer.otherend_path, iops="many")
    await machine.write(peer.otherend_path, bandwidth="-1")
    assert await disk.read(0, 8) == image.read_bytes()[:PAGE]
    await disk.leave()


# -- pause -------------------------------------------------------------------------------------------------------------


async def pause(machine: Machine, peer: Peer, paused: bool) -> None:
    """As `xenbusctl pause` and `resume`."""
    await toolstack.pause(machine.store, peer.id, paused=paused, deadline_s=DEADLINE_S)


async def test_a_paused_disk_lets_go_of_its_image(machine: Machine, image: Path) -> None:
    """Somebody else may open it, and put another one in its place; the guest's requests wait, and find that one."""
    dom0, peer, disk = await disk_of(machine, image)
    await pause(machine, peer, True)
    slot = X86_64.rw(READ, disk.id(), 0, disk.segments(8))
    waiting = asyncio.create_task(disk.ask(slot))
    await taken(dom0, peer.id, 1)
    with closing(Image(str(image), writable=True)) as mine:
        mine.write([memoryview(b"n" * PAGE)], 0, PAGE)
    assert not waiting.done()
    await pause(machine, peer, False)
    assert [status for _, status in (await waiting).values()] == [OKAY]
    assert disk.data[:PAGE] == b"n" * PAGE
    await pause(machine, peer, True)
    await pause(machine, peer, False)
    assert await disk.read(0, 8) == b"n" * PAGE
    await disk.leave()


async def test_a_larger_image_after_a_pause(machine: Machine, image: Path) -> None:
    """The guest learns of it as of an image that grew."""
    _dom0, peer, disk = await disk_of(machine, image)
    await pause(machine, peer, True)
    os.truncate(image, 4 * SIZE)
    await pause(machine, peer, False)
    await has(peer, "sectors", b"%d" % (4 * SECTORS))
    assert await disk.read(4 * SECTORS - 8, 8) == bytes(PAGE)
    await disk.leave()


async def test_a_pause_goes_on_until_the_image_is_there(machine: Machine, image: Path) -> None:
    """An image that is missing, in use or smaller is not served: `resume` says why, and the guest waits."""
    _dom0, peer, disk = await disk_of(machine, image)
    contents = image.read_bytes()
    await pause(machine, peer, True)
    waiting = asyncio.create_task(disk.read(0, 8))
    image.rename(f"{image}.away")
    with pytest.raises(OtherendTimeout, match=r"has not resumed: 2 cannot open .*No such file"):
        await pause(machine, peer, False)
    Path(f"{image}.away").rename(image)
    mine = Image(str(image), writable=True)
    with closing(mine), pytest.raises(OtherendTimeout, match=r"has not resumed: 16 .*is in use by another"):
        await pause(machine, peer, False)
    os.truncate(image, SIZE // 2)
    with pytest.raises(OtherendTimeout, match=r"has not resumed: 27 its image has 1024 sectors now"):
        await pause(machine, peer, False)
    assert not waiting.done()
    image.write_bytes(contents)
    await pause(machine, peer, False)
    assert await waiting == contents[:PAGE]
    assert await machine.read(peer.id.error_path(Side.BACKEND)) is None
    await disk.leave()


async def test_a_paused_disk_that_closes(machine: Machine, image: Path) -> None:
    """The requests that it holds get ERROR, and nothing is left mapped."""
    dom0, peer, disk = await disk_of(machine, image)
    await pause(machine, peer, True)
    asking = asyncio.create_task(disk.ask(X86_64.rw(READ, disk.id(), 0, disk.segments(8))))
    await taken(dom0, peer.id, 1)
    await close(peer, disk)
    assert [status for _, status in (await asking).values()] == [ERROR]
    assert machine.holdings(GUEST).grants_mapped == 0
