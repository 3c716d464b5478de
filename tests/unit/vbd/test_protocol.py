"""The blkif slots byte by byte in both layouts (T30), and which requests may be carried out (T32)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenbusd_vbd import protocol
from xenbusd_vbd.protocol import (
    ABIS,
    DEFAULT_ABI,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    INDIRECT,
    OKAY,
    READ,
    SECTORS_PER_PAGE,
    SEGMENTS_MAX,
    WRITE,
    WRITE_BARRIER,
    X86_32,
    X86_64,
    Abi,
    Request,
    answered_op,
    check,
    expand,
    pack_segments,
)

EACH_ABI = pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)

ID = 0x1122334455667788
SECTOR = 0x0102030405060708

HEAD = {X86_64: "0000 00000000", X86_32: "0000"}
"""What follows op and count: the u16 handle, and on x86_64 four bytes up to the aligned id."""

ID_AND_SECTOR = "8877665544332211 0807060504030201"
TWO_SEGMENTS = "ddccbbaa 00 07 0000  44332211 02 05 0000"


def slot(abi: Abi, *parts: str) -> bytes:
    """A whole slot that begins with these bytes; what nobody writes is filled with 0xEE."""
    return bytes.fromhex("".join(parts)).ljust(abi.slot_bytes, b"\xee")


# -- layouts -----------------------------------------------------------------------------------------------------------


def test_sizes() -> None:
    """A slot is 112 bytes on x86_64 and 108 on x86_32, and a page holds 32 of either."""
    assert (X86_64.slot_bytes, X86_32.slot_bytes) == (112, 108)
    assert X86_64.ring.slot_bytes == 112
    assert X86_32.ring.slot_bytes == 108


def test_names() -> None:
    """The layouts go by the strings of `protocol`; without one it is x86_32's (T29)."""
    assert ABIS == {"x86_64-abi": X86_64, "x86_32-abi": X86_32}
    assert DEFAULT_ABI == "x86_32-abi"


@EACH_ABI
@pytest.mark.parametrize("op", [READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE])
def test_a_request_with_segments(abi: Abi, op: int) -> None:
    """op, nr_segments, handle, id, sector, then gref, first and last of each segment; lengths add up in sectors."""
    bytes_ = slot(abi, f"{op:02x} 02", HEAD[abi], ID_AND_SECTOR, TWO_SEGMENTS)
    expected = Request(op, ID, SECTOR, 8 + 4, (0xAABBCCDD, 0x11223344), (0, 2), (7, 5))
    assert abi.parse_request(bytes_, 0) == expected


@EACH_ABI
def test_a_request_with_one_segment(abi: Abi) -> None:
    """The shortest data request is parsed as the long ones are."""
    bytes_ = slot(abi, "00 01", HEAD[abi], ID_AND_SECTOR, "ddccbbaa 03 06 0000")
    assert abi.parse_request(bytes_, 0) == Request(READ, ID, SECTOR, 4, (0xAABBCCDD,), (3,), (6,))


@EACH_ABI
def test_a_request_with_all_segments(abi: Abi) -> None:
    """Eleven segments fill the slot to its last bytes."""
    bytes_ = slot(abi, "01 0b", HEAD[abi], ID_AND_SECTOR, *(f"{n:02x}000000 00 07 0000" for n in range(11)))
    request = abi.parse_request(bytes_, 0)
    assert request == Request(WRITE, ID, SECTOR, 88, tuple(range(11)), (), ())
    assert list(request.segments()) == [(gref, 0, 7) for gref in range(11)]


@EACH_ABI
def test_a_flush_without_segments(abi: Abi) -> None:
    """Linux' flush: nr_segments 0, and nothing after the sector means anything."""
    bytes_ = slot(abi, "03 00", HEAD[abi], ID_AND_SECTOR)
    assert abi.parse_request(bytes_, 0) == Request(FLUSH_DISKCACHE, ID, SECTOR, 0, (), (), ())


@EACH_ABI
def test_a_discard(abi: Abi) -> None:
    """op, flag, id, sector, nr_sectors as a u64."""
    bytes_ = slot(abi, "05 01", HEAD[abi], ID_AND_SECTOR, "efbeadde01000000")
    assert abi.parse_request(bytes_, 0) == Request(DISCARD, ID, SECTOR, 0x1DEADBEEF, (), (), (), 1)


@EACH_ABI
def test_an_indirect_request_is_answered_with_its_inner_op(abi: Abi) -> None:
    """op 6, the inner op, u16 nr_segments, id: the id in its own place, and the inner op to answer with (T31)."""
    gap = HEAD[abi][4:]
    request = abi.parse_request(slot(abi, "06 01 0002", gap, ID_AND_SECTOR), 0)
    assert (request.op, request.id) == (INDIRECT, ID)
    assert answered_op(request) == WRITE


@EACH_ABI
def test_a_packed_indirect_request(abi: Abi) -> None:
    """op 6, inner op, u16 segments, id, sector, handle, eight pages; what comes back is what went in (T30)."""
    slot_ = abi.pack_indirect(WRITE, ID, SECTOR, 513, (0xAABBCCDD, 0x11223344))
    assert slot_ == bytes.fromhex(
        "06 01 0102" + HEAD[abi][4:] + ID_AND_SECTOR + "0000 0000 ddccbbaa 44332211" + "00000000" * 6
    )
    assert abi.parse_request(slot_.ljust(abi.slot_bytes, b"\xee"), 0) == Request(
        INDIRECT, ID, SECTOR, 513, (0xAABBCCDD, 0x11223344), (), (), WRITE
    )


@settings(deadline=None)
@given(st.integers(1, 256), st.integers(1, 8), st.booleans())
def test_descriptors_and_back(pages: int, last_sectors: int, read: bool) -> None:
    """Descriptors of data that fills its pages from the start; the request that they make is as long as the data."""
    grefs, sectors = tuple(range(100, 100 + pages)), (pages - 1) * 8 + last_sectors
    op = READ if read else WRITE
    request = expand(Request(INDIRECT, 9, 64, pages, (1,), (), (), op), pack_segments(grefs, sectors))
    assert (request.op, request.id, request.sector, request.sectors, request.grefs) == (op, 9, 64, sectors, grefs)
    assert list(request.segments())[-1] == (grefs[-1], 0, last_sectors - 1)
    assert bool(request.firsts) == (last_sectors != 8)


@pytest.mark.parametrize(
    ("segments", "op", "offered", "status"),
    [
        (1, READ, 256, OKAY),
        (256, WRITE, 256, OKAY),
        (257, WRITE, 256, ERROR),
        (0, READ, 256, ERROR),
        (2, FLUSH_DISKCACHE, 256, ERROR),
        (2, INDIRECT, 256, ERROR),
        (2, READ, 0, EOPNOTSUPP),
    ],
)
def test_which_descriptors_are_fetched(segments: int, op: int, offered: int, status: int) -> None:
    """From 1 to as many as were offered, and of reads and writes only (T31, T32)."""
    assert protocol.check_indirect(Request(INDIRECT, 1, 0, segments, (1,), (), (), op), offered) == status


def test_secure_discards() -> None:
    """Secure discards are allowed on disks that have offered them."""
    request = discard(0, 8, flag=1)
    assert check(request, CAPACITY, read_only=False, discard=True, secure=True) == OKAY
    assert check(request, CAPACITY, read_only=False, discard=True, secure=False) == EOPNOTSUPP


@pytest.mark.parametrize("op", [READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE, 4, DISCARD, 7, 255])
def test_other_requests_are_answered_with_their_own_op(op: int) -> None:
    """An answer carries the op of its request, known or not (T31), though a discard has a flag."""
    assert answered_op(Request(op, 1, 0, 0, (), (), (), flag=1)) == op


@EACH_ABI
def test_the_slot_that_is_meant_is_parsed(abi: Abi) -> None:
    """In a run of slots `start` says which one it is."""
    first = slot(abi, "03 00", HEAD[abi], "01" + "00" * 15)
    second = slot(abi, "00 01", HEAD[abi], ID_AND_SECTOR, "ddccbbaa 03 06 0000")
    assert abi.parse_request(first + second, abi.slot_bytes).id == ID


@EACH_ABI
@settings(deadline=None)
@given(data=st.data())
def test_any_bytes_parse(abi: Abi, data: st.DataObject) -> None:
    """No slot makes the parser or the check raise, and what is accepted lies within the disk and its pages."""
    bytes_ = data.draw(st.binary(min_size=abi.slot_bytes, max_size=abi.slot_bytes))
    op = data.draw(st.sampled_from([*range(8), bytes_[0]]))
    count = data.draw(st.sampled_from([*range(13), bytes_[1]]))
    capacity = data.draw(st.integers(0, 1 << 64))
    request = abi.parse_request(bytes((op, count)) + bytes_[2:], 0)
    assert request.op == op
    if check(request, capacity, read_only=False, discard=True) != OKAY:
        return
    assert op in (READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE, DISCARD)
    assert len(request.grefs) <= SEGMENTS_MAX
    assert all(first <= last < SECTORS_PER_PAGE for _, first, last in request.segments())
    assert request.sectors >= 0
    if request.sectors:
        assert request.sector + request.sectors <= capacity


def test_a_packed_request_x86_64() -> None:
    """Pages are filled from their start, the last one as far as the length goes: 13 sectors are 8 and 5."""
    assert X86_64.pack_request(WRITE, ID, SECTOR, (0xAABBCCDD, 0x11223344), 13) == bytes.fromhex(
        "01 02 0000 00000000" + ID_AND_SECTOR + "ddccbbaa 00 07 0000  44332211 00 04 0000"
    )


def test_a_packed_request_x86_32() -> None:
    """The packed layout differs in the four bytes before the id alone."""
    assert X86_32.pack_request(READ, ID, SECTOR, (0xAABBCCDD,), 1) == bytes.fromhex(
        "00 01 0000" + ID_AND_SECTOR + "ddccbbaa 00 00 0000"
    )


@EACH_ABI
def test_a_packed_flush(abi: Abi) -> None:
    """A flush has no segments."""
    assert abi.pack_request(FLUSH_DISKCACHE, ID, 0, (), 0) == bytes.fromhex(
        "03 00" + HEAD[abi] + "8877665544332211 0000000000000000"
    )


@EACH_ABI
def test_a_packed_discard(abi: Abi) -> None:
    """A discard of ours is never a secure one."""
    assert abi.pack_discard(ID, SECTOR, 0x1DEADBEEF) == bytes.fromhex(
        "05 00" + HEAD[abi] + ID_AND_SECTOR + "efbeadde01000000"
    )


def test_a_packed_response() -> None:
    """id, op, a zeroed byte, status; zeros up to 16 bytes on x86_64, nothing on x86_32 (XSA-216)."""
    expected = bytes.fromhex("8877665544332211 01 00 feff")
    assert X86_32.pack_response(ID, WRITE, EOPNOTSUPP) == expected
    assert X86_64.pack_response(ID, WRITE, EOPNOTSUPP) == expected + bytes(4)


@EACH_ABI
def test_a_parsed_response(abi: Abi) -> None:
    """A status is signed; the padding is nobody's."""
    run = slot(abi, "00") + slot(abi, "8877665544332211 05 ee ffff")
    assert abi.parse_response(run, abi.slot_bytes) == (ID, DISCARD, ERROR)


# -- what a request may be ---------------------------------------------------------------------------------------------

CAPACITY = 1000


def request(op: int, sector: int = 0, *segments: tuple[int, int]) -> Request:
    """A request with these first and last sectors."""
    firsts, lasts = tuple(first for first, _ in segments), tuple(last for _, last in segments)
    sectors = sum(last - first + 1 for first, last in segments)
    return Request(op, 1, sector, sectors, tuple(range(len(segments))), firsts, lasts)


def discard(sector: int, sectors: int, flag: int = 0) -> Request:
    """A discard."""
    return Request(DISCARD, 1, sector, sectors, (), (), (), flag)


FULL = (0, 7)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(request(READ, 0, FULL), OKAY, id="first page"),
        pytest.param(request(READ, 992, FULL), OKAY, id="last page"),
        pytest.param(request(READ, 993, FULL), ERROR, id="over the end"),
        pytest.param(request(READ, 1000, (0, 0)), ERROR, id="behind the end"),
        pytest.param(request(READ, (1 << 64) - 1, FULL), ERROR, id="a sum that wraps in 64 bits"),
        pytest.param(request(WRITE, 0, *[FULL] * 11), OKAY, id="all segments"),
        pytest.param(request(WRITE, 0, (7, 7), (0, 0)), OKAY, id="parts of pages"),
        pytest.param(request(WRITE, 0, (4, 3)), ERROR, id="last before first"),
        pytest.param(request(WRITE, 0, FULL, (0, 8)), ERROR, id="over the end of its page"),
        pytest.param(request(WRITE, 0, (255, 255)), ERROR, id="outside its page"),
        pytest.param(request(WRITE, 0, (5, 4), (0, 7)), ERROR, id="a bad segment whose length others make good"),
        pytest.param(request(READ), ERROR, id="a read of nothing"),
        pytest.param(request(WRITE), ERROR, id="a write of nothing"),
        pytest.param(request(FLUSH_DISKCACHE), OKAY, id="flush"),
        pytest.param(request(FLUSH_DISKCACHE, (1 << 64) - 1), OKAY, id="a flush's sector means nothing"),
        pytest.param(request(FLUSH_DISKCACHE, 0, FULL), OKAY, id="flush, then write"),
        pytest.param(request(FLUSH_DISKCACHE, 993, FULL), ERROR, id="flush, then write over the end"),
        pytest.param(request(WRITE_BARRIER), OKAY, id="an empty barrier"),
        pytest.param(request(WRITE_BARRIER, 0, FULL), OKAY, id="barrier"),
        pytest.param(Request(READ, 1, 0, -1, (), (), ()), ERROR, id="too many segments"),
        pytest.param(Request(FLUSH_DISKCACHE, 1, 0, -1, (), (), ()), ERROR, id="a flush of too many segments"),
        pytest.param(discard(0, CAPACITY), OKAY, id="discard everything"),
        pytest.param(discard(1, CAPACITY), ERROR, id="discard over the end"),
        pytest.param(discard((1 << 64) - 1, 1), ERROR, id="a discard whose sum wraps"),
        pytest.param(discard(0, 8, flag=1), EOPNOTSUPP, id="secure discard"),
        pytest.param(request(4), EOPNOTSUPP, id="op 4"),
        pytest.param(Request(INDIRECT, 1, 0, 0, (), (), (), READ), EOPNOTSUPP, id="indirect, which is not offered"),
        pytest.param(request(7), EOPNOTSUPP, id="op 7"),
        pytest.param(request(255), EOPNOTSUPP, id="op 255"),
    ],
)
def test_check(request_: Request, status: int) -> None:
    """T32, row by row, on a writable disk of 1000 sectors."""
    assert check(request_, CAPACITY, read_only=False, discard=True) == status


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(request(READ, 0, FULL), OKAY, id="read"),
        pytest.param(request(WRITE, 0, FULL), ERROR, id="write"),
        pytest.param(request(WRITE_BARRIER, 0, FULL), ERROR, id="barrier"),
        pytest.param(request(FLUSH_DISKCACHE), ERROR, id="flush"),
        pytest.param(discard(0, 8), ERROR, id="discard"),
        pytest.param(request(9), EOPNOTSUPP, id="unknown op"),
    ],
)
def test_check_read_only(request_: Request, status: int) -> None:
    """A read-only disk refuses whatever would change it (T32)."""
    assert check(request_, CAPACITY, read_only=True, discard=False) == status


def test_check_discard_not_offered() -> None:
    """A discard that was not offered is an operation that we do not have."""
    assert check(discard(0, 8), CAPACITY, read_only=False, discard=False) == EOPNOTSUPP


def test_parse_and_check_too_many_segments() -> None:
    """Twelve segments do not fit a slot: refused, and none of them looked at."""
    for abi in ABIS.values():
        parsed = abi.parse_request(slot(abi, "00 0c", HEAD[abi], ID_AND_SECTOR), 0)
        assert (parsed.id, parsed.grefs) == (ID, ())
        assert check(parsed, 1 << 63, read_only=False, discard=True) == ERROR


def test_units() -> None:
    """A request is 44 KiB at most, in sectors of 512 bytes (T35)."""
    assert (protocol.SECTOR, protocol.REQUEST_BYTES_MAX) == (512, 45056)
