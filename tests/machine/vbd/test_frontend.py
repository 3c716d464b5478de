"""The disk's frontend against every kind of backend: queues, ring sizes, large requests, sector sizes, barriers,
discard, growth. The programs that use its disk are not ours."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.disk_pair import DEVID, pair
from tests.doubles.echo import GUEST
from tests.doubles.hand_backend import BARRIER, DISCARD, FLUSH, PAGE, READ, SECTOR, WRITE, HandBackend
from tests.machine.vbd.test_nbd_peers import fio_has_nbd, peer
from xenbusd.bus.state import Side, State
from xenbusd.errors import GrantError
from xenbusd.host.sim.grants import SimGrants
from xenbusd.ids import DOM0
from xenbusd.testing import Machine, Peer, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_vbd import frontend
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.frontend import VbdFrontend
from xenbusd_vbd.nbd.kernel import Kernel, NbdDevice

MIB = 1 << 20


async def run(*argv: str, status: int = 0) -> str:
    """Run a program to its end; return what it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == status, f"{argv[0]} exited with {process.returncode}: {output.decode()}"
    return output.decode()


def uri(guest: Process) -> str:
    """The disk's NBD address."""
    return f"nbd+unix:///?socket={guest.services.run_dir}/vbd-{DEVID}.sock"


async def told(guest: Process) -> dict[str, Any]:
    """What nbdinfo says of the disk."""
    (export,) = json.loads(await run("nbdinfo", "--json", uri(guest)))["exports"]
    assert isinstance(export, dict)
    return export


async def qemu_io(guest: Process, *steps: str, status: int = 0) -> str:
    """Have qemu-io do some steps."""
    words = [word for step in steps for word in ("-c", step)]
    return await run("qemu-io", "-f", "raw", *words, uri(guest), status=status)


needs_nbdinfo = peer("nbdinfo", "libnbd-bin")
needs_nbdcopy = peer("nbdcopy", "libnbd-bin")
needs_qemu_io = peer("qemu-io", "qemu-utils")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 8 MiB in a file."""
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(3).randbytes(8 * MIB))
    return path


# -- both real ends ----------------------------------------------------------------------------------------------------


@needs_nbdcopy
@pytest.mark.parametrize("queues", [1, 2, 4])
@pytest.mark.parametrize("order", [0, 2])
async def test_several_queues_and_pages(machine: Machine, image: Path, tmp_path: Path, queues: int, order: int) -> None:
    """A whole disk is read and written through all queues with rings of several pages; every queue has its part."""
    other = tmp_path / "other.img"
    other.write_bytes(random.Random(4).randbytes(8 * MIB))
    async with pair(machine, image, front={"queues": queues, "ring_page_order": order}) as disk:
        await run("nbdcopy", "--connections=1", "--requests=64", uri(disk.guest), str(tmp_path / "copy.img"))
        assert (tmp_path / "copy.img").read_bytes() == image.read_bytes()
        await run("nbdcopy", "--connections=1", "--requests=64", "--flush", str(other), uri(disk.guest))
        details = disk.guest.device(disk.id).details
        assert details is not None
        rings = [details()] if queues == 1 else list(details().values())
        assert len(rings) == queues
        for ring in rings:
            assert isinstance(ring, dict)
            assert ring["ring_slots"] == 32 << order
            assert ring["req_prod"] == ring["rsp_prod"] > 0
    assert image.read_bytes() == other.read_bytes()


@pytest.mark.skipif(not fio_has_nbd(), reason="no fio with the nbd engine: apt-get install fio")
async def test_fio_verifies_through_four_queues(machine: Machine, image: Path, tmp_path: Path) -> None:
    """fio writes blocks of all sizes at random, 32 at a time, and finds each of them again."""
    report = tmp_path / "report"
    async with pair(machine, image, front={"queues": 4}) as disk:
        sizes = (
            "--rw=randwrite",
            "--bsrange=512-512k",
            "--size=8M",
            "--iodepth=32",
            "--verify=crc32c",
            "--end_fsync=1",
        )
        where = ("--ioengine=nbd", f"--uri={uri(disk.guest)}", f"--aux-path={tmp_path}")
        await run("fio", "--name=verify", *where, *sizes, "--output-format=json", f"--output={report}")
        (job,) = json.loads(report.read_text())["jobs"]
        assert job["error"] == 0
        assert job["read"]["io_bytes"] == job["write"]["io_bytes"] > 4 * MIB


@pytest.mark.parametrize(("queues", "order"), [(2, 0), (4, 1)])
async def test_requests_in_several_queues_outlive_a_backend(
    machine: Machine, image: Path, queues: int, order: int
) -> None:
    """The backend is killed, and later stopped, with every queue full; the next one goes on with all of them."""
    async with pair(machine, image, front={"queues": queues, "ring_page_order": order}) as disk:
        process = disk.back
        for round, end in enumerate(("kill", "stop")):
            await (process.kill() if end == "kill" else process.stop())
            fill = 65 + round
            tasks = [asyncio.create_task(disk.write(PAGE * n, bytes([fill]) * PAGE)) for n in range(300)]
            await disk.guest.settle()
            assert not any(task.done() for task in tasks)
            process = await machine.start(DOM0, VbdBackend)
            assert await asyncio.gather(*tasks) == [0] * 300
            assert await disk.read(0, 300 * PAGE) == bytes([fill]) * 300 * PAGE
        assert disk.guest.states(disk.id, "frontend") == ["Initialising", "Initialised", "Connected"]


# -- a backend by hand -------------------------------------------------------------------------------------------------


class Hand:
    """A guest with a real frontend, and a backend that does only what the test says."""

    def __init__(self, machine: Machine, guest: Process, peer: Peer) -> None:
        self.machine = machine
        self.guest = guest
        self.peer = peer
        self.back: HandBackend | None = None

    async def connect(self, size_bytes: int = 4 * MIB, **published: int) -> HandBackend:
        """Go through a backend's handshake, with these keys beside those that must be."""
        back = self.back = await HandBackend.connect(self.peer, size_bytes, **published)
        await self.peer.until(State.CONNECTED)
        return back

    async def again(self, **offered: int) -> None:
        """Close in order, and come back to InitWait."""
        assert self.back is not None
        await self.back.leave()
        await self.peer.until(State.INITIALISING)
        await self.peer.write(State.INIT_WAIT, **offered)

    async def error(self) -> str:
        """Wait until the frontend has closed; return what it has left in its error node."""
        await self.peer.until(State.CLOSING, State.CLOSED)
        node = await self.machine.read(self.peer.id.error_path(Side.FRONTEND))
        return (node or b"nothing").decode()


@asynccontextmanager
async def hand(machine: Machine, *, options: Mapping[str, Any] | None = None, **offered: int) -> AsyncIterator[Hand]:
    """A real frontend, and a backend at InitWait that has `offered` these keys."""
    id = machine.id("vbd", devid=DEVID)
    dom0 = await machine.start(DOM0)
    guest = await machine.start(GUEST, VbdFrontend, options={"vbd": {"nbd_device": False, **(options or {})}})
    await machine.attach(id)
    hand = Hand(machine, guest, Peer(dom0, id, Side.BACKEND))
    await hand.peer.write(State.INIT_WAIT, **offered)
    yield hand
    if hand.back is not None:
        hand.back.close()


@pytest.mark.parametrize(
    ("offered", "options", "queues", "order"),
    [
        ({}, {}, 1, None),
        ({}, {"queues": 4, "ring_page_order": 4}, 1, None),
        ({"multi_queue_max_queues": 8, "max_ring_page_order": 4}, {}, 1, None),
        ({"multi_queue_max_queues": 8, "max_ring_page_order": 4}, {"queues": 3, "ring_page_order": 2}, 3, 2),
        ({"multi_queue_max_queues": 2, "max_ring_page_order": 1}, {"queues": 16, "ring_page_order": 4}, 2, 1),
        ({"multi_queue_max_queues": 0, "max_ring_page_order": 0}, {"queues": 2, "ring_page_order": 2}, 1, None),
        ({"multi_queue_max_queues": 1 << 31, "max_ring_page_order": 1 << 31}, {"queues": 2}, 2, None),
    ],
)
async def test_no_more_than_the_backend_offers(
    machine: Machine, offered: dict[str, int], options: dict[str, int], queues: int, order: int | None
) -> None:
    """T28: the numbers of queues and of ring pages are ours as far as the backend has so many; one page in the old
    spelling, which every backend reads."""
    async with hand(machine, options=options, **offered) as it:
        back = await it.connect()
        assert (len(back.rings), back.order) == (queues, order)
        assert machine.holdings(GUEST).grants_mapped == queues << (order or 0)


@needs_qemu_io
@pytest.mark.parametrize(("segments", "largest"), [(0, 11), (11, 11), (16, 16), (32, 32), (256, 44)])
async def test_large_requests(machine: Machine, segments: int, largest: int) -> None:
    """T31: where the backend takes indirect requests they are as large as it takes them and our pages allow."""
    offered = {"feature_max_indirect_segments": segments} if segments else {}
    async with hand(machine, options=None, **offered) as it:
        back = await it.connect()
        output = await qemu_io(
            it.guest, "write -P 7 4k 1M", "read -P 7 4k 1M", "write -P 9 512 1536", "read -P 9 512 1536"
        )
        assert "failed" not in output
        assert max(back.segments) == largest
        assert back.data[: 4096 + MIB] == b"".join([bytes(512), b"\x09" * 1536, bytes(2048), b"\x07" * MIB])
        assert back.pages_mapped <= 352


@needs_qemu_io
async def test_a_guest_with_few_pages(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """T65: what gntalloc does not have any more is done without: smaller requests, fewer at a time."""
    share = SimGrants.share

    def scarce(self: SimGrants, domid: Any, pages: int, **more: Any) -> Any:
        if pages > 20:
            raise GrantError("xengntshr_share_pages", errno.ENOSPC, f"{pages} pages")
        return share(self, domid, pages, **more)

    monkeypatch.setattr(SimGrants, "share", scarce)
    async with hand(machine, feature_max_indirect_segments=256) as it:
        back = await it.connect()
        assert "failed" not in await qemu_io(it.guest, "write -P 7 0 2M", "read -P 7 0 2M")
        assert max(back.segments) == 11
        assert back.pages_mapped <= 11


@needs_qemu_io
@pytest.mark.parametrize(
    "keys", [{"feature_flush_cache": 1}, {"feature_barrier": 1}, {}, {"feature_barrier": 1, "feature_flush_cache": 1}]
)
async def test_ways_to_flush(machine: Machine, keys: dict[str, int]) -> None:
    """T37: flush-cache outranks the barrier, a barrier alone does for both, and a backend with neither is said to have
    none. A write with FUA is flushed after it is done."""
    async with hand(machine) as it:
        back = await it.connect(**keys)
        export = await told(it.guest)
        assert export["can_flush"] is export["can_fua"] is bool(keys)
        if not keys:
            return
        op = FLUSH if "feature_flush_cache" in keys else BARRIER
        await qemu_io(it.guest, "write -P 1 0 4k", "flush")
        assert [step for step in back.seen if step[0] != READ][:2] == [(WRITE, 0, 8), (op, 0, 0)]
        back.seen.clear()
        await qemu_io(it.guest, "write -f -P 2 8k 512")
        steps = [step for step in back.seen if step[0] != READ]
        assert steps[:2] == [(WRITE, 16, 1), (op, 0, 0)]


@needs_nbdinfo
@needs_qemu_io
@pytest.mark.parametrize(
    ("sector", "physical", "minimum", "preferred"),
    [(512, 512, 512, 4096), (512, 4096, 512, 4096), (4096, 4096, 4096, 4096), (512, 65536, 512, 65536)],
)
async def test_large_sectors(machine: Machine, sector: int, physical: int, minimum: int, preferred: int) -> None:
    """T35: a backend's larger sectors are the clients' too, and one that keeps to them is served; a request within a
    sector is refused by the export and never reaches the ring. On the ring all is in units of 512."""
    async with hand(machine) as it:
        back = await it.connect(sector_size=sector, physical_sector_size=physical)
        export = await told(it.guest)
        assert (export["block_size_minimum"], export["block_size_preferred"]) == (minimum, preferred)
        assert export["export-size"] == 4 * MIB
        assert "failed" not in await qemu_io(it.guest, "write -P 5 1000 5000", "read -P 5 1000 5000")
        assert back.data[1000:6000] == b"\x05" * 5000
        assert all(first % (sector // 512) == count % (sector // 512) == 0 for _, first, count in back.seen)


@needs_nbdinfo
@pytest.mark.parametrize(
    ("info", "read_only", "kind"), [(0, False, "disk"), (4, True, "disk"), (5, True, "CD-ROM"), (3, False, "CD-ROM")]
)
async def test_what_kind_of_disk_it_is(machine: Machine, info: int, read_only: bool, kind: str) -> None:
    """T38: `info` says what the clients are told."""
    async with hand(machine) as it:
        await it.connect(info=info, feature_discard=1)
        export = await told(it.guest)
        assert (export["is_read_only"], export["can_trim"]) == (read_only, not read_only)
        assert export["description"] == f"Xen {kind} vbd-{DEVID}"


@needs_qemu_io
async def test_discards_keep_to_granules(machine: Machine) -> None:
    """Only whole granules are discarded, counted from the alignment on; none is secure, for nobody can ask for it."""
    async with hand(machine) as it:
        back = await it.connect(feature_discard=1, discard_granularity=65536, discard_alignment=32768, discard_secure=1)
        await qemu_io(it.guest, "discard 0 1M", "discard 64k 32k", "discard 33k 128k")
        assert [step for step in back.seen if step[0] == DISCARD] == [(DISCARD, 64, 1920), (DISCARD, 192, 128)]


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"sector_size": 0}, "sector-size is 0; it should be 512, 1024, 2048 or 4096"),
        ({"sector_size": 3000}, "sector-size is 3000; it should be 512, 1024, 2048 or 4096"),
        ({"sector_size": 8192}, "sector-size is 8192; it should be 512, 1024, 2048 or 4096"),
        ({"sector_size": 4096, "sectors": 8193}, "sectors is 8193, no whole number of 4096 bytes"),
        ({"sectors": 1 << 60}, "which is no number up to"),
        ({"feature_flush_cache": 7}, "feature-flush-cache holds '7', which is no boolean"),
        ({"discard_granularity": -1}, "discard-granularity holds '-1', which is no number"),
    ],
)
async def test_a_disk_that_cannot_be(machine: Machine, keys: dict[str, int], complaint: str) -> None:
    """What a backend publishes is not believed unchecked: the frontend says which key is wrong, and closes."""
    async with hand(machine) as it:
        it.back = await HandBackend.connect(it.peer, 4 * MIB, **keys)
        assert complaint in await it.error()


@needs_nbdinfo
@needs_qemu_io
async def test_a_disk_that_grows(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """T34: a new size is there for the next client, without any step of state; a smaller one is logged and told."""
    async with hand(machine) as it:
        back = await it.connect(4 * MIB)
        assert "failed" in await qemu_io(it.guest, "write 5M 4k", status=1)
        back.data += bytes(4 * MIB)
        await back.republish(sectors=8 * MIB // SECTOR)
        await it.guest.until(lambda: any(line["event"] == "disk.grown" for line in logged))
        assert (await told(it.guest))["export-size"] == 8 * MIB
        assert "failed" not in await qemu_io(it.guest, "write -P 3 5M 4k", "read -P 3 5M 4k")
        assert back.data[5 * MIB : 5 * MIB + 4096] == b"\x03" * 4096
        for _ in range(3):
            await back.republish(sectors=2 * MIB // SECTOR)
        await it.guest.until(lambda: any(line["event"] == "disk.shrunk" for line in logged))
        assert (await told(it.guest))["export-size"] == 2 * MIB
        await it.guest.settle()
        assert [line["new_sectors"] for line in logged if line["event"] == "disk.shrunk"] == [4096]
        assert it.guest.states(it.peer.id, "frontend") == ["Initialising", "Initialised", "Connected"]


@pytest.mark.parametrize("value", ["many", "-1", str(1 << 60)])
async def test_a_size_that_cannot_be(machine: Machine, value: str) -> None:
    """A size that is none ends the connection, as it would have when it was first read."""
    async with hand(machine) as it:
        await it.connect()
        await it.peer.write(State.CONNECTED, sectors=value)
        assert "/sectors holds " in await it.error()


async def test_another_backend_with_another_disk(machine: Machine) -> None:
    """A backend that comes back with other abilities and another size is used as it is then, and clients find the new
    size."""
    async with hand(machine, feature_max_indirect_segments=256, options={"queues": 2}) as it:
        back = await it.connect(4 * MIB, feature_flush_cache=1)
        await it.again(multi_queue_max_queues=2, feature_max_indirect_segments=0)
        assert len(back.rings) == 0
        back = await it.connect(6 * MIB, feature_barrier=1)
        assert len(back.rings) == 2
        assert (await told(it.guest))["export-size"] == 6 * MIB
        assert "failed" not in await qemu_io(it.guest, "write -P 1 5M 512k", "flush", "read -P 1 5M 512k")
        assert max(back.segments) == 11
        assert min(back.by_queue.values()) > 0


class OneDevice:
    """A kernel with one NBD device, which does nothing but be connected.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sys/nbd0", "dev"):
            (folder / name).mkdir(parents=True)
        (folder / "dev" / "nbd0").touch()
        self.calls: list[tuple[int, int]] = []
        self._over = threading.Event()

    def kernel(self) -> Kernel:
        """As the code under test sees it."""
        return Kernel(str(self.folder / "sys"), str(self.folder / "dev"), self.ioctl)

    def ioctl(self, fd: int, request: int, argument: int) -> None:
        """Note it; NBD_DO_IT lasts until NBD_DISCONNECT."""
        del fd
        self.calls.append((request, argument))
        pid = self.folder / "sys/nbd0/pid"
        if request == 0xAB03:
            pid.write_text("1\n")
            self._over.wait(DEADLINE_S)
            pid.unlink()
        elif request == 0xAB08:
            self._over.set()


async def test_the_kernel_s_device_grows(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/dev/nbdN gets the new size at once, also one that does not fit 32 bits, and never a smaller one."""
    device = OneDevice(tmp_path)
    monkeypatch.setattr(frontend, "Kernel", device.kernel)
    attach: Callable[..., Any] = NbdDevice.attach
    monkeypatch.setattr(NbdDevice, "attach", lambda export: attach(export, kernel=device.kernel()))

    def sizes() -> list[int]:
        return [argument for request, argument in device.calls if request == 0xAB07]

    async with hand(machine, options={"nbd_device": True}) as it:
        back = await it.connect(4 * MIB)
        assert sizes() == [8192]
        await back.republish(sectors=1 << 40)
        await it.guest.until(lambda: len(sizes()) == 2)
        await back.republish(sectors=8192)
        await back.republish(sectors=1 << 41)
        await it.guest.until(lambda: len(sizes()) == 3)
        assert sizes() == [8192, 1 << 40, 1 << 41]
        await machine.store.rm(it.peer.id.frontend_path)
        await it.guest.until(lambda: it.guest.devices == [])
    assert os.listdir(tmp_path / "sys/nbd0") == []
