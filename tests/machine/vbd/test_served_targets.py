"""The targets that a backend serves, those that it refuses, and its reasons."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from tests.doubles.hand_disk import (
    ERROR,
    OKAY,
    PAGE,
    READ,
    X86_64,
    HandDisk,
)
from tests.doubles.served_image import GRANTS, SECTORS, SIZE, attached, contents, error_node, offer
from xenbusd import toolstack
from xenbusd.bus.state import State
from xenbusd.errors import OtherendTimeout
from xenbusd.ids import Domid
from xenbusd.testing import Machine, Peer
from xenbusd.testing.machine import DEADLINE_S


@pytest.mark.parametrize(
    ("params", "code", "sentence"),
    [
        ("{tmp}/none.img", errno.ENOENT, "cannot open {tmp}/none.img: No such file or directory"),
        ("{tmp}", None, "{tmp}"),
        ("/dev/null", errno.EINVAL, "/dev/null is neither a regular file nor a block device"),
        ("tar:{tmp}/disk.img", errno.EINVAL, "tar"),
        ("disk.img", errno.ENOENT, "cannot open /dev/disk.img: No such file or directory"),
        ("", errno.EINVAL, "write an absolute path"),
    ],
    ids=["missing", "folder", "no disk", "format", "name", "empty"],
)
@pytest.mark.parametrize("mode", ["w", "r"])
async def test_a_target_that_cannot_be_served(
    machine: Machine, tmp_path: Path, image: Path, params: str, code: int | None, sentence: str, mode: str
) -> None:
    """A target that is missing, no disk, or of another format: the error node says which and why, the toolstack repeats
    it, and the device closes. When the cause is mended, a frontend that begins again gets its disk."""
    peer = await attached(machine, params.format(tmp=tmp_path), mode)
    offered = asyncio.create_task(offer(peer))
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


async def test_a_target_in_use(machine: Machine, image: Path) -> None:
    """A second disk on an image that is written to is refused, with a way out; `w!` shares it, and readers share."""
    first = await attached(machine, image)
    disk = await HandDisk.connect(first)
    guest = await machine.start(Domid(6))
    for devid, mode, refused in ((1, "w", True), (2, "r", True), (3, "w!", False)):
        peer = Peer(guest, machine.id("vbd", 6, devid))
        await machine.attach(peer.id, {"params": f"raw:{image}", "mode": mode})
        if refused:
            with await offer(peer):
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
