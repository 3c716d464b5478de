"""The fast path does what the slow path does, or leaves a request to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.doubles.fake_grants import FRONTEND, FakeGrants
from xenbusd.grants.cache import GrantCache
from xenbusd.ids import PAGE_SIZE
from xenbusd_vbd.back.fast_path import FastPath
from xenbusd_vbd.protocol import FLUSH_DISKCACHE, OKAY, READ, WRITE, X86_32, X86_64, Abi, pack_segments

PAGES = 16
SECTORS = PAGES * 8
EACH_ABI = pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A disk whose page n is full of n."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([n]) * PAGE_SIZE for n in range(PAGES)))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


class Bench:
    """A fast path with two pages mapped, 100 and 101, each filled with its number."""

    def __init__(self, abi: Abi, fd: int) -> None:
        self.abi = abi
        self.fd = fd
        cache = GrantCache(FakeGrants((100, 101)), FRONTEND, 16)
        cache.pages((100, 101))
        cache.used.clear()
        self.pages, self.used = cache.mapped, cache.used
        self.fast = FastPath(abi, cache, 256)

    def answer(self, *slots: bytes, first: int = 0, ops: int = 2, sectors: int = SECTORS) -> list[tuple[int, int, int]]:
        """Have it carry out slots. Return its answers, parsed."""
        run = b"".join(slot.ljust(self.abi.slot_bytes, b"\xee") for slot in slots)
        count = len(slots) - first
        self.fast.fd, self.fast.ops, self.fast.sectors = self.fd, ops, sectors
        answers, self.moved = self.fast.answer(run, first, count)
        return [self.abi.parse_response(answer, 0) for answer in answers]

    def on_disk(self, page: int) -> bytes:
        """The disk's page of this number."""
        return os.pread(self.fd, PAGE_SIZE, page * PAGE_SIZE)


@EACH_ABI
def test_reads_and_writes(abi: Abi, fd: int) -> None:
    """Each is carried out at its place, in order, and answered; its pages are noted as used."""
    bench = Bench(abi, fd)
    read = abi.pack_request(READ, 7, 24, (100,), 8)
    write = abi.pack_request(WRITE, 8, 40, (101,), 8)
    assert bench.answer(read, write) == [(7, READ, OKAY), (8, WRITE, OKAY)]
    assert bench.pages[100] == b"\x03" * PAGE_SIZE
    assert bench.on_disk(5) == bytes([101]) * PAGE_SIZE
    assert list(bench.used) == [(100,), (101,)]


@EACH_ABI
def test_indirect_requests(abi: Abi, fd: int) -> None:
    """Pages that descriptors name, in any order; over the end, or with a page that is not mapped, it is left."""
    bench = Bench(abi, fd)
    bench.pages[102] = memoryview(bytearray(pack_segments((101, 100), 16).ljust(PAGE_SIZE, b"\xee")))
    bench.pages[103] = memoryview(bytearray(pack_segments((101, 99), 16).ljust(PAGE_SIZE, b"\xee")))
    assert bench.answer(abi.pack_indirect(READ, 7, 24, 2, (102,))) == [(7, READ, OKAY)]
    assert (bench.pages[101], bench.pages[100]) == (b"\x03" * PAGE_SIZE, b"\x04" * PAGE_SIZE)
    assert bench.moved == 2 * PAGE_SIZE
    assert list(bench.used) == [(102,), (101, 100)]
    assert bench.answer(abi.pack_indirect(WRITE, 8, 64, 2, (102,))) == [(8, WRITE, OKAY)]
    assert bench.on_disk(8) + bench.on_disk(9) == b"\x03" * PAGE_SIZE + b"\x04" * PAGE_SIZE
    for sector, page in ((SECTORS - 15, 102), (0, 103)):
        assert bench.answer(abi.pack_indirect(WRITE, 9, sector, 2, (page,))) == []
    assert bench.on_disk(0) == bytes(PAGE_SIZE)


@EACH_ABI
@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(lambda abi: abi.pack_request(FLUSH_DISKCACHE, 1, 0, (), 0), id="a flush"),
        pytest.param(lambda abi: abi.pack_request(READ, 1, 0, (100, 101), 16), id="two pages"),
        pytest.param(lambda abi: abi.pack_request(READ, 1, 0, (100,), 7), id="a part of a page"),
        pytest.param(lambda abi: abi.pack_request(READ, 1, 0, (102,), 8), id="a page that is not mapped"),
        pytest.param(lambda abi: abi.pack_request(READ, 1, SECTORS - 7, (100,), 8), id="over the end"),
        pytest.param(lambda abi: abi.pack_request(READ, 1, (1 << 64) - 1, (100,), 8), id="far over the end"),
        pytest.param(lambda abi: abi.pack_discard(1, 0, 8), id="a discard"),
        pytest.param(lambda abi: bytes([5, 1]) + abi.pack_discard(1, 0, 8)[2:], id="a discard like a segment"),
        pytest.param(lambda abi: abi.pack_indirect(READ, 1, 0, 1, (100,)), id="indirect, and nonsense"),
        pytest.param(lambda abi: abi.pack_indirect(READ, 1, 0, 257, (100,)), id="indirect, and more than offered"),
        pytest.param(lambda abi: abi.pack_indirect(READ, 1, 0, 0, (100,)), id="indirect, and nothing"),
        pytest.param(lambda abi: abi.pack_indirect(READ, 1, 0, 1, (99,)), id="indirect, from no page"),
    ],
)
def test_what_is_not_plain_is_left(abi: Abi, fd: int, plain: object) -> None:
    """It and all behind it are left to the slow path, untouched; the requests before it are answered."""
    bench = Bench(abi, fd)
    slot = plain(abi)  # type: ignore[operator]
    good = abi.pack_request(READ, 9, 8, (100,), 8)
    assert bench.answer(good, slot, good) == [(9, READ, OKAY)]
    assert bench.pages[101] == bytes([101]) * PAGE_SIZE


def test_a_read_only_disk(fd: int) -> None:
    """Where the fast path may not write, writes are left to the slow path."""
    bench = Bench(X86_64, fd)
    assert bench.answer(X86_64.pack_request(WRITE, 1, 0, (100,), 8), ops=1) == []
    assert bench.on_disk(0) == bytes(PAGE_SIZE)


def test_an_error_is_left(fd: int) -> None:
    """A request that the image does not carry out in full, or at all, is left to the slow path."""
    bench = Bench(X86_64, fd)
    read = X86_64.pack_request(READ, 1, SECTORS, (100,), 8)
    assert bench.answer(read, sectors=2 * SECTORS) == []  # the image ends before the disk does
    bench.fd = -1
    assert bench.answer(X86_64.pack_request(READ, 1, 0, (100,), 8)) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes(fd: int, data: st.DataObject) -> None:
    """Whatever is in the slots, it neither raises nor touches what is not the disk's; it answers from the front."""
    bench = Bench(X86_64, fd)
    slots = data.draw(st.lists(st.binary(min_size=112, max_size=112), min_size=1, max_size=4))
    slots = [bytes([data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))]) + slot[2:] for slot in slots]
    answers = bench.answer(*slots, first=0)
    assert len(answers) <= len(slots)
    for (id, op, status), slot in zip(answers, slots, strict=False):
        assert (op, status) == (slot[0], OKAY)
        assert id == int.from_bytes(slot[8:16], "little")
    assert os.fstat(fd).st_size == PAGES * PAGE_SIZE
