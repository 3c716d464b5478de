"""The disk's frontend with a real backend: several queues, rings of several pages, and a backend that is replaced."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from tests.doubles.disk_pair import pair
from tests.doubles.disk_programs import (
    fio_has_nbd,
    needs_nbdcopy,
    run,
    uri,
)
from tests.doubles.hand_backend import PAGE
from xenbusd.ids import DOM0
from xenbusd.testing import Machine
from xenbusd_vbd.backend import VbdBackend

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 8 MiB in a file."""
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(3).randbytes(8 * MIB))
    return path


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
    """The backend is killed, and later stopped, with every queue full; the next one adopts all of them."""
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
