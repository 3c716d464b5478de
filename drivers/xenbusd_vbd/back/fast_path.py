"""The fast path: plain requests are carried out within one function.

A plain request reads or writes whole pages that are mapped already: one page that its slot names, or as many as the
descriptors in another page name. Most requests are plain. On an image in memory, or one that the page cache holds, they
take a single system call; the way through a request, a job, the pages and the engine would cost ten times as much. So
this is the one place where a slot is parsed, checked, carried out and answered in one loop. Any other request is left
to the slow path, in BlockServer.

Decision: D37.
"""

from __future__ import annotations

import os

from xenbusd.api import PAGE_SIZE, GrantCache
from xenbusd_vbd.protocol import (
    INDIRECT,
    OKAY,
    READ,
    SECTORS_PER_PAGE,
    SEGMENT_BYTES,
    SEGMENTS_PER_INDIRECT,
    WRITE,
    Abi,
    descriptors,
)

_LAST = SECTORS_PER_PAGE - 1
_SHIFT = 9
"""From sectors to bytes."""


class FastPath:
    """The fast path of one ring. The caller sets `fd`, `flags`, `ops` and `sectors` before it calls `answer`.

    Args:
        abi: its layout.
        cache: the frontend's pages that are mapped.
        indirect: the most segments of an indirect request; 0 if none were offered. Requests of more than one page of
            descriptors are not plain.
    """

    __slots__ = (
        "_indirect",
        "_mapped",
        "_pack",
        "_slot_bytes",
        "_unpack",
        "_unpack_indirect",
        "_used",
        "fd",
        "flags",
        "ops",
        "sectors",
    )

    def __init__(self, abi: Abi, cache: GrantCache, indirect: int) -> None:
        self._unpack = abi.one_segment.unpack_from
        self._unpack_indirect = abi.indirect.unpack_from
        self._indirect = min(indirect, SEGMENTS_PER_INDIRECT)
        self._pack = abi.response.pack
        self._slot_bytes = abi.slot_bytes
        self._mapped = cache.mapped
        self._used = cache.used
        self.fd = -1
        """A descriptor of the image."""
        self.flags = 0
        """For preadv, such as RWF_NOWAIT."""
        self.ops = 0
        """Operations below this number are carried out: 1 for READ alone, 2 for READ and WRITE."""
        self.sectors = 0
        """The disk's capacity."""

    def answer(self, run: bytes, first: int, count: int) -> tuple[list[bytes], int]:
        """Carry out requests from the front of a run, up to the first that is not plain or fails.

        Args:
            run: a private copy of slots.
            first: number of the slot to begin with.
            count: slots from there on.

        Returns:
            The answers, all of them OKAY, of the requests that were carried out; and the bytes that these moved.
        """
        unpack, pack, mapped, used, slot_bytes = self._unpack, self._pack, self._mapped, self._used, self._slot_bytes
        unpack_indirect, indirect = self._unpack_indirect, self._indirect
        fd, flags, ops, sectors = self.fd, self.flags, self.ops, self.sectors
        answers: list[bytes] = []
        size = 0
        for at in range(first * slot_bytes, (first + count) * slot_bytes, slot_bytes):
            if run[at] == INDIRECT:
                _, op, segments, id, sector, _, gref, *_ = unpack_indirect(run, at)
                if not 0 < segments <= indirect or gref not in mapped:
                    break
                fields = descriptors(segments).unpack(bytes(mapped[gref][: segments * SEGMENT_BYTES]))
                if fields[1::3] != (0,) * segments or fields[2::3] != (_LAST,) * segments:
                    break
                used.append((gref,))
                grefs = fields[0::3]
            elif run[at + 1] == 1:
                op, segments, _, id, sector, gref, start, end = unpack(run, at)
                if start or end != _LAST:
                    break
                grefs = (gref,)
            else:
                break
            if op >= ops or sector + segments * SECTORS_PER_PAGE > sectors:
                break
            try:
                pages = [mapped[gref] for gref in grefs]
            except KeyError:
                break
            try:
                if op == READ:
                    done = os.preadv(fd, pages, sector << _SHIFT, flags)
                else:
                    done = os.pwritev(fd, pages, sector << _SHIFT)
            except OSError:  # the slow path meets the error again, and reports it
                break
            if done != segments * PAGE_SIZE:
                break
            used.append(grefs)
            size += done
            answers.append(pack(id, op, OKAY))
        return answers, size


assert (READ, WRITE) == (0, 1), "operations are compared with how many are allowed"
