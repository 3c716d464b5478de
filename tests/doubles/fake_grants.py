"""The grant table of one frontend, for tests of what a backend does with it."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from xenbusd.errors import GrantError, LocalProtocolError
from xenbusd.host.interface import Copy, Grants, Mapping, Share
from xenbusd.ids import PAGE_SIZE, Domid, Gref

FRONTEND = Domid(7)


class FakeGrants(Grants):
    """Pages that the frontend has granted.

    Args:
        grefs: what is granted: a page for each, filled with the reference's lowest byte.
    """

    def __init__(self, grefs: Sequence[int] = ()) -> None:
        self.pages = {gref: bytearray(bytes([gref & 0xFF]) * PAGE_SIZE) for gref in grefs}
        self.map_calls: list[int] = []
        """Each reference, as often as it was mapped."""
        self.mapped: set[int] = set()
        """What is mapped now."""
        self.copy_calls: list[list[Copy]] = []
        self.copies_fail = False
        """Whether the whole of each batch of copies is refused."""

    def map(self, domid: Domid, grefs: Sequence[Gref], *, writable: bool = True) -> Mapping:
        """Map one page; persistent grants are writable whatever they are used for (T36)."""
        assert domid == FRONTEND
        assert writable
        [gref] = grefs
        self.map_calls.append(gref)
        if gref not in self.pages:
            raise GrantError("xengnttab_map_domain_grant_refs", errno.EINVAL, f"domain {domid}, {gref}")
        return _FakeMapping(self, gref)

    def copy(self, segments: Sequence[Copy]) -> list[int]:
        """Copy what is granted, and give the others a status."""
        self.copy_calls.append(list(segments))
        if self.copies_fail:
            raise GrantError("xengnttab_grant_copy", errno.ENOMEM, f"{len(segments)} segments")
        return [self._copy(segment) for segment in segments]

    def _copy(self, segment: Copy) -> int:
        assert segment.domid == FRONTEND
        page, end = self.pages.get(segment.gref), segment.offset + len(segment.local)
        assert 0 <= segment.offset < end <= PAGE_SIZE
        if page is None:
            return errno.EINVAL
        if segment.to_grant:
            page[segment.offset : end] = segment.local
        else:
            segment.local[:] = page[segment.offset : end]
        return 0

    def share(self, domid: Domid, pages: int, *, writable: bool = True) -> Share:
        """Refuse: a backend has nothing to share."""
        raise AssertionError(f"a backend shared {pages} pages with {domid}, writable: {writable}")


class _FakeMapping(Mapping):
    def __init__(self, grants: FakeGrants, gref: int) -> None:
        assert gref not in grants.mapped, f"{gref} is mapped twice"
        grants.mapped.add(gref)
        self._grants = grants
        self._gref = gref
        self.view = memoryview(grants.pages[gref])

    def unmap(self) -> None:
        """Give the page back, unless a slice of it is still in use."""
        if self._gref not in self._grants.mapped:
            return
        self.view.release()
        page = self._grants.pages[self._gref]
        try:
            page.append(0)  # CPython refuses this while a view exists
        except BufferError:
            raise LocalProtocolError(f"{self._gref} is still in use") from None
        page.pop()
        self._grants.mapped.remove(self._gref)
