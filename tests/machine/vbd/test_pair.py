"""The disk pair on a simulated machine: data through both real ends, and its fate when one of them ends."""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path

import pytest

from tests.doubles.disk_pair import DEVID, pair
from tests.doubles.hand_disk import (
    PAGE,
    READ,
    X86_64,
    HandDisk,
)
from tests.doubles.nbd_client import NbdClient
from tests.doubles.served_image import SIZE, contents
from xenbusd.bus.state import State
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import Machine, Peer
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_vbd import frontend as vbd_frontend
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.server_requests import COUNTED


async def test_the_pair_moves_data(machine: Machine, target: Path) -> None:
    """Large reads and writes are split and put together again; flush, FUA and trim are done; the image has it all."""
    image = bytearray(contents())
    async with pair(machine, target) as disk:
        assert disk.ring_disk.size_bytes == SIZE
        assert await disk.read(0, SIZE) == image
        parts = [(SIZE // 8 * n, random.Random(n).randbytes(SIZE // 8)) for n in range(8)]
        assert await asyncio.gather(*(disk.write(at, data) for at, data in parts)) == [0] * 8
        for at, data in parts:
            image[at : at + len(data)] = data
        assert await disk.write(4096, b"x" * 512, fua=True) == 0
        image[4096:4608] = b"x" * 512
        assert await disk.do(disk.ring_disk.flush) == 0
        assert await disk.read(0, SIZE) == image
        if disk.ring_disk.can_trim:
            assert await disk.do(disk.ring_disk.trim, 8192, 16384) == 0
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
        (dev,) = disk.guest.devices
        counted = {name: dev.counters[name] for name in COUNTED}
        assert counted == {**dict.fromkeys(COUNTED, 0), "nbd_connections": 1, "nbd_requests": 1, "nbd_bytes_read": PAGE}
        assert "nbd_errors" not in dict(dev.counters)  # rare ones are shown once there are any
    assert not path.exists()


async def test_a_read_only_pair(machine: Machine, image: Path) -> None:
    """The frontend learns from `info` that nothing can be written, and the backend would refuse it all the same."""
    async with pair(machine, image, "r") as disk:
        assert disk.ring_disk.read_only
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
    """The next backend adopts the ring. Without its journal the pair connects anew, and requests without an answer go
    through the new ring again, before anything newer: the frontend keeps a shadow of each request."""
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
    """When the device is detached for good, requests that come too late get ENODEV, and nobody is left waiting."""
    async with pair(machine, image) as disk:
        ring_disk = disk.ring_disk
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    ring_disk.flush(done.set_result)
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
