"""The disk's frontend with every kind of backend: ring sizes, large requests, sector sizes, flushes, discards. The
programs that use its disk are not ours."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.doubles.disk_pair import DEVID
from tests.doubles.disk_programs import (
    nbdinfo,
    needs_nbdinfo,
    needs_qemu_io,
    qemu_io,
)
from tests.doubles.echo import GUEST
from tests.doubles.hand_backend import BARRIER, DISCARD, FLUSH, READ, WRITE, HandBackend, frontend_bench
from xenbusd.errors import GrantError
from xenbusd.host.sim.grants import SimGrants
from xenbusd.testing import Machine

MIB = 1 << 20


MIB = 1 << 20


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
    """T28: the frontend asks for its own numbers of queues and ring pages, or for the backend's if those are smaller. A
    ring of one page has the old keys, which every backend reads."""
    async with frontend_bench(machine, options=options, **offered) as it:
        back = await it.connect()
        assert (len(back.rings), back.order) == (queues, order)
        assert machine.holdings(GUEST).grants_mapped == queues << (order or 0)


@needs_qemu_io
@pytest.mark.parametrize(("segments", "largest"), [(0, 11), (11, 11), (16, 16), (32, 32), (256, 44)])
async def test_large_requests(machine: Machine, segments: int, largest: int) -> None:
    """T31: indirect requests are as large as the backend and our pages allow."""
    offered = {"feature_max_indirect_segments": segments} if segments else {}
    async with frontend_bench(machine, options=None, **offered) as it:
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
    """T65: with few pages left in gntalloc, the disk works with smaller requests, and fewer at a time."""
    share = SimGrants.share

    def scarce(self: SimGrants, domid: Any, pages: int, **more: Any) -> Any:
        if pages > 20:
            raise GrantError("xengntshr_share_pages", errno.ENOSPC, f"{pages} pages")
        return share(self, domid, pages, **more)

    monkeypatch.setattr(SimGrants, "share", scarce)
    async with frontend_bench(machine, feature_max_indirect_segments=256) as it:
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
    async with frontend_bench(machine) as it:
        back = await it.connect(**keys)
        export = await nbdinfo(it.guest)
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
    async with frontend_bench(machine) as it:
        back = await it.connect(sector_size=sector, physical_sector_size=physical)
        export = await nbdinfo(it.guest)
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
    async with frontend_bench(machine) as it:
        await it.connect(info=info, feature_discard=1)
        export = await nbdinfo(it.guest)
        assert (export["is_read_only"], export["can_trim"]) == (read_only, not read_only)
        assert export["description"] == f"Xen {kind} vbd-{DEVID}"


@needs_qemu_io
async def test_discards_keep_to_granules(machine: Machine) -> None:
    """Only whole granules are discarded, counted from the alignment on; none is secure, for nobody can ask for it."""
    async with frontend_bench(machine) as it:
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
    """The frontend checks what a backend publishes: it says which key is wrong, and closes."""
    async with frontend_bench(machine) as it:
        it.back = await HandBackend.connect(it.peer, 4 * MIB, **keys)
        assert complaint in await it.error()
