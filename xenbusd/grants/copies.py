"""A batch of grant copies, and which request each of them belongs to.

The hypervisor copies many segments in one call and gives each a status of its own. Every status must be checked, and a
copy that failed may harm no request but its own (XSA-361). So each copy has an owner, and the batch returns the owners
whose copies failed.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from xenbusd.errors import GrantError
from xenbusd.host.interface import Copy, Grants
from xenbusd.ids import Domid, Gref

Owner = TypeVar("Owner")


class CopyBatch(Generic[Owner]):
    """Copies to and from pages of one domain, done together.

    Args:
        grants: the grant tables.
        domid: the domain that the pages belong to.
    """

    __slots__ = ("_domid", "_grants", "_owners", "_segments")

    def __init__(self, grants: Grants, domid: Domid) -> None:
        self._grants = grants
        self._domid = domid
        self._segments: list[Copy] = []
        self._owners: list[Owner] = []

    def add(self, owner: Owner, gref: int, offset: int, local: memoryview, *, to_grant: bool) -> None:
        """Add a copy to the batch.

        Args:
            owner: the owner of the copy: a request, a job, or a stand-in for one. Hashable.
            gref: the page.
            offset: where in the page, in bytes; the copy must not cross the page's end.
            local: our bytes, contiguous; writable unless `to_grant`.
            to_grant: True to copy our bytes to the page, False to copy from it.
        """
        self._segments.append(Copy(to_grant, self._domid, Gref(gref), offset, local))
        self._owners.append(owner)

    def run(self) -> list[Owner]:
        """Have all copies done in one call, and empty the batch.

        Returns:
            The owners with a copy that failed, each once; all of them, if the batch as a whole was refused.
        """
        segments, owners = self._segments, self._owners
        if not segments:
            return []
        self._segments, self._owners = [], []
        try:
            statuses = self._grants.copy(segments)
        except GrantError:
            return list(dict.fromkeys(owners))
        if not any(statuses):
            return []
        return list(dict.fromkeys(owner for owner, status in zip(owners, statuses, strict=True) if status))
