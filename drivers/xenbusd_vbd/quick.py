"""The short way: what most requests are, done within one function.

Most requests read or write one whole page that is mapped already, and on an image in memory, or one that the page cache
holds, that takes a single system call. Going through a request, a job, the pages and the engine would cost them ten
times that. So this is the one place where a slot is parsed, checked, carried out and answered in one loop; whatever is
not as plain as that is left to the long way, in BlockServer, with everything behind it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping

from xenbusd.api import PAGE_SIZE
from xenbusd_vbd.protocol import OKAY, READ, SECTORS_PER_PAGE, WRITE, Abi

_LAST = SECTORS_PER_PAGE - 1
_SHIFT = 9
"""From sectors to bytes."""


class QuickPath:
    """The short way of one ring.

    Args:
        abi: its layout.
        mapped: the frontend's pages that are mapped, by grant reference.
        used: told of each page that is used.
    """

    __slots__ = ("_mapped", "_pack", "_slot_bytes", "_unpack", "_used")

    def __init__(self, abi: Abi, mapped: Mapping[int, memoryview], used: deque[tuple[int, ...]]) -> None:
        self._unpack = abi.one_segment.unpack_from
        self._pack = abi.response.pack
        self._slot_bytes = abi.slot_bytes
        self._mapped = mapped
        self._used = used

    def answer(self, run: bytes, first: int, count: int, *, fd: int, flags: int, ops: int, sectors: int) -> list[bytes]:
        """Do requests from the front of a run, up to the first that is not plain.

        Args:
            run: a private copy of slots.
            first: the slot to begin with.
            count: how many there are from there on.
            fd: the image.
            flags: for preadv, such as RWF_NOWAIT.
            ops: how many operations may be done so: 1 for READ alone, 2 for WRITE as well.
            sectors: the disk's capacity.

        Returns:
            The answers; all of them OKAY, and those of the requests that were done.
        """
        unpack, pack, mapped, used, slot_bytes = self._unpack, self._pack, self._mapped, self._used, self._slot_bytes
        answers: list[bytes] = []
        for at in range(first * slot_bytes, (first + count) * slot_bytes, slot_bytes):
            if run[at + 1] != 1:
                break
            op, _, _, id, sector, gref, start, end = unpack(run, at)
            if op >= ops or start or end != _LAST or gref not in mapped or sector + SECTORS_PER_PAGE > sectors:
                break
            pages = (mapped[gref],)
            try:
                if op == READ:
                    done = os.preadv(fd, pages, sector << _SHIFT, flags)
                else:
                    done = os.pwritev(fd, pages, sector << _SHIFT)
            except OSError:  # the long way meets it again, and says what it is
                break
            if done != PAGE_SIZE:
                break
            used.append((gref,))
            answers.append(pack(id, op, OKAY))
        return answers


assert (READ, WRITE) == (0, 1), "operations are compared with how many are allowed"
