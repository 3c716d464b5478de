"""The blkif ring: the slots of both x86 layouts, and which requests may be carried out. Pure: no I/O here.

All sector numbers and counts are in units of 512 bytes, whatever `sector-size` says (T35).

Source: xen/include/public/io/blkif.h (blkif_request_t, blkif_response_t, BLKIF_OP_*, BLKIF_RSP_*, VDISK_*); the two
layouts differ in how a u64 is aligned (T30; Linux, drivers/block/xen-blkback/common.h, blkif_x86_32_request).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from struct import Struct
from typing import NamedTuple

from xenbusd.api import Raw, RingFormat

READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE = 0, 1, 2, 3
DISCARD, INDIRECT = 5, 6

OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
"""BLKIF_RSP_*: the only statuses that a response can have (T33)."""

SECTOR = 512
SECTORS_PER_PAGE = 8
SEGMENTS_MAX = 11
"""Segments of one request (BLKIF_MAX_SEGMENTS_PER_REQUEST): 44 KiB."""

REQUEST_BYTES_MAX = SEGMENTS_MAX * SECTORS_PER_PAGE * SECTOR

INDIRECT_SEGMENTS_MAX = 256
"""Segments of one indirect request, as we and Linux offer (MAX_INDIRECT_SEGMENTS): 1 MiB."""

SEGMENT_BYTES = 8
SEGMENTS_PER_INDIRECT = 512
"""Descriptors in one page that an indirect request names (T31)."""

DISCARD_SECURE = 1
"""A discard's flag BLKIF_DISCARD_SECURE."""

VDISK_CDROM, VDISK_REMOVABLE, VDISK_READONLY = 1, 2, 4
"""Bits of the `info` key."""

MAX_RING_PAGE_ORDER = 4


class Request(NamedTuple):
    """One request, parsed from a private copy of its slot.

    `grefs`, `firsts` and `lasts` describe its segments: page, first and last sector in it; `firsts` and `lasts` are
    empty where every page is used whole, as nearly all are. A discard has none; its length is `sectors`, and its flag
    is in `flag`. An indirect request has the pages of its descriptors in `grefs`, the number of descriptors in
    `sectors` and its inner operation in `flag`; `expand` turns it into the read or write that it stands for. A request
    that claims more segments than its slot holds has none, and -1 sectors.
    """

    op: int
    id: int
    sector: int
    sectors: int
    grefs: tuple[int, ...]
    firsts: tuple[int, ...]
    lasts: tuple[int, ...]
    flag: int = 0

    def segments(self) -> Iterator[tuple[int, int, int]]:
        """The page, first and last sector of each segment."""
        if self.firsts:
            return zip(self.grefs, self.firsts, self.lasts, strict=True)
        return ((gref, 0, SECTORS_PER_PAGE - 1) for gref in self.grefs)


_new = tuple.__new__
"""Makes a Request in half the time that its own constructor takes."""


class Abi:
    """One of the two slot layouts.

    Args:
        name: as the `protocol` key spells it.
        gap: bytes between the 4-byte head of a slot and its u64 `id`: 4 where u64 is aligned to 8, else 0.
        tail: bytes that a response is padded with, written as zeros (XSA-216).
    """

    def __init__(self, name: str, gap: int, tail: int) -> None:
        self.name = name
        head = f"<BBH{gap}xQQ"
        self._rw = [Struct(head + "IBBxx" * count) for count in range(SEGMENTS_MAX + 1)]
        self.one_segment = self._rw[1]
        """op, nr_segments, handle, id, sector, gref, first and last sector."""
        self._discard = Struct(head + "Q")  # op, flag, pad, id, sector, nr_sectors
        self.indirect = Struct(f"<BBH{gap}xQQHxx8I")
        """op, inner op, nr_segments, id, sector, handle, eight grefs."""
        self.response = Struct(f"<QBxh{tail}x")
        """id, op, status."""
        self.slot_bytes = self._rw[SEGMENTS_MAX].size
        self.ring = RingFormat(self.slot_bytes, Raw, Raw, max_order=MAX_RING_PAGE_ORDER)

    def parse_request(self, run: bytes, start: int) -> Request:
        """Parse the slot at `start` of a private copy. Any bytes parse; `check` says what is wrong with them."""
        op, count = run[start], run[start + 1]
        if op == DISCARD:
            _, flag, _, id, sector, sectors = self._discard.unpack_from(run, start)
            return Request(op, id, sector, sectors, (), (), (), flag)
        if op == INDIRECT:
            _, inner, segments, id, sector, _, *grefs = self.indirect.unpack_from(run, start)
            return Request(op, id, sector, segments, tuple(grefs[: _indirect_pages(segments)]), (), (), inner)
        if count > SEGMENTS_MAX:
            _, _, _, id, sector = self._rw[0].unpack_from(run, start)
            return Request(op, id, sector, -1, (), (), ())
        if count == 1:  # the commonest by far
            _, _, _, id, sector, gref, first, last = self._rw[1].unpack_from(run, start)
            if first == 0 and last == SECTORS_PER_PAGE - 1:
                return _new(Request, (op, id, sector, SECTORS_PER_PAGE, (gref,), (), (), 0))
            return Request(op, id, sector, last - first + 1, (gref,), (first,), (last,))
        fields = self._rw[count].unpack_from(run, start)
        return _with_segments(op, fields[3], fields[4], fields[5::3], fields[6::3], fields[7::3])

    def pack_request(self, op: int, id: int, sector: int, grefs: tuple[int, ...], sectors: int) -> bytes:
        """Pack a read, write, barrier or flush of `sectors` sectors, which fill the pages `grefs` from the start."""
        count = len(grefs)
        segments: list[int] = []
        for gref in grefs:
            last = min(sectors, SECTORS_PER_PAGE) - 1
            sectors -= last + 1
            segments += (gref, 0, last)
        return self._rw[count].pack(op, count, 0, id, sector, *segments)

    def pack_indirect(self, op: int, id: int, sector: int, segments: int, grefs: tuple[int, ...]) -> bytes:
        """Pack a read or write whose `segments` descriptors (`pack_segments`) stand in the pages `grefs`."""
        return self.indirect.pack(INDIRECT, op, segments, id, sector, 0, *grefs, *(0,) * (8 - len(grefs)))

    def pack_discard(self, id: int, sector: int, sectors: int) -> bytes:
        """Pack a discard."""
        return self._discard.pack(DISCARD, 0, 0, id, sector, sectors)

    def pack_response(self, id: int, op: int, status: int) -> bytes:
        """Pack a response, its padding zeroed."""
        return self.response.pack(id, op, status)

    def parse_response(self, run: bytes, start: int) -> tuple[int, int, int]:
        """Parse the response in the slot at `start`: id, op, status."""
        id, op, status = self.response.unpack_from(run, start)
        return id, op, status


def _with_segments(
    op: int, id: int, sector: int, grefs: tuple[int, ...], firsts: tuple[int, ...], lasts: tuple[int, ...]
) -> Request:
    count = len(grefs)
    if firsts == (0,) * count and lasts == (SECTORS_PER_PAGE - 1,) * count:
        return Request(op, id, sector, count * SECTORS_PER_PAGE, grefs, (), ())
    return Request(op, id, sector, sum(lasts) - sum(firsts) + count, grefs, firsts, lasts)


def _indirect_pages(segments: int) -> int:
    return -(-segments // SEGMENTS_PER_INDIRECT)


@cache
def descriptors(count: int) -> Struct:
    """The layout of `count` descriptors: gref, first and last sector of each."""
    return Struct("<" + "IBBxx" * count)


def expand(request: Request, table: bytes) -> Request:
    """Return the request that an indirect one stands for.

    Args:
        request: indirect, and found sound by `check_indirect`.
        table: a private copy of its descriptors, SEGMENT_BYTES each.
    """
    fields = descriptors(request.sectors).unpack(table)
    return _with_segments(request.flag, request.id, request.sector, fields[0::3], fields[1::3], fields[2::3])


def pack_segments(grefs: tuple[int, ...], sectors: int) -> bytes:
    """Pack the descriptors of `sectors` sectors, which fill the pages `grefs` from the start."""
    last = (sectors - 1) % SECTORS_PER_PAGE
    whole = [field for gref in grefs[:-1] for field in (gref, 0, SECTORS_PER_PAGE - 1)]
    return bytes(descriptors(len(grefs)).pack(*whole, grefs[-1], 0, last))


X86_64 = Abi("x86_64-abi", gap=4, tail=4)
X86_32 = Abi("x86_32-abi", gap=0, tail=0)

ABIS = {abi.name: abi for abi in (X86_64, X86_32)}

DEFAULT_ABI = X86_32.name
"""The layout if `protocol` is absent: Linux, QEMU and tapback agree on it, even for a 64-bit guest (T29)."""


def check_indirect(request: Request, offered: int) -> int:
    """Return whether the descriptors of an indirect request may be fetched.

    Args:
        request: as parsed.
        offered: `feature-max-indirect-segments`; 0 if it was not published.

    Returns:
        OKAY, ERROR or EOPNOTSUPP.
    """
    if not offered:
        return EOPNOTSUPP
    return OKAY if request.flag in (READ, WRITE) and 1 <= request.sectors <= offered else ERROR


def check(request: Request, capacity: int, read_only: bool, discard: bool, secure: bool = False) -> int:
    """Return whether a request may be carried out (T32).

    Args:
        request: as parsed; an indirect one, as expanded.
        capacity: sectors of the disk.
        read_only: writes, barriers, flushes and discards are refused.
        discard: whether discards were offered.
        secure: whether secure ones were.

    Returns:
        OKAY, ERROR or EOPNOTSUPP: the status to answer with if it is not OKAY.
    """
    op = request.op
    if op > FLUSH_DISKCACHE and op != DISCARD:
        return EOPNOTSUPP
    if read_only and op != READ:
        return ERROR
    if op == DISCARD:
        if not discard or (request.flag & DISCARD_SECURE and not secure):
            return EOPNOTSUPP
        return OKAY if request.sector + request.sectors <= capacity else ERROR
    if not request.grefs:
        return OKAY if op in (FLUSH_DISKCACHE, WRITE_BARRIER) and request.sectors == 0 else ERROR
    for first, last in zip(request.firsts, request.lasts, strict=True):
        if not first <= last < SECTORS_PER_PAGE:
            return ERROR
    return OKAY if request.sector + request.sectors <= capacity else ERROR


def answered_op(request: Request) -> int:
    """The op that its response carries: an indirect request's is the inner one, or blkfront gives up the disk (T31)."""
    return request.flag if request.op == INDIRECT else request.op
