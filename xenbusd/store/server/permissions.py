"""The rights of domains to a node. Pure.

Source: docs/misc/xenstore.txt (GET_PERMS, SET_PERMS), tools/xenstore/xenstored_core.c:perm_for_conn.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from functools import lru_cache

from xenbusd.store.server.quotas import Refusal

READ = 1
WRITE = 2
OWN = 4
ALL = READ | WRITE | OWN

_LETTERS = b"nrwb"
"""The letter for each mask: neither, READ, WRITE, both."""
_PERMISSION = re.compile(rb"([nrwb])(0|[1-9][0-9]{0,4})")
_DOMID_MAX = 0xFFFF


class Permissions:
    """A node's permission list. Immutable, and shared by all nodes that have the same.

    The first entry names the owner, who may do everything, and gives the rights of domains that are not listed. Of
    several entries for one domain the first counts.
    """

    __slots__ = ("count", "default", "entries", "grants", "owner", "text")

    def __init__(self, entries: tuple[tuple[int, int], ...]) -> None:
        self.owner, self.default = entries[0]
        self.entries = entries
        self.grants: dict[int, int] = {}
        for domid, mask in entries[1:]:
            self.grants.setdefault(domid, mask)
        self.count = len(entries)
        self.text = b"".join(b"%c%d\0" % (_LETTERS[mask], domid) for domid, mask in entries)

    def allow(self, domid: int, target: int | None = None) -> int:
        """Return the rights of an unprivileged domain here: a mask of READ, WRITE, OWN.

        Args:
            domid: the domain.
            target: the domain that it acts for (SET_TARGET), whose rights it has too.
        """
        owner = self.owner
        if owner == domid or (target is not None and owner == target):
            return ALL
        mask = self.grants.get(domid)
        if mask is None and target is not None:
            mask = self.grants.get(target)
        return self.default if mask is None else mask

    def without(self, domid: int) -> Permissions:
        """Return the list without the grants to `domid`: the same object if there are none. The owner stays."""
        if domid not in self.grants:
            return self
        return permissions((self.entries[0], *(entry for entry in self.entries[1:] if entry[0] != domid)))

    def owned_by(self, domid: int) -> Permissions:
        """Return the list with `domid` as the owner."""
        if self.owner == domid:
            return self
        return permissions(((domid, self.default), *self.entries[1:]))


@lru_cache(maxsize=4096)
def permissions(entries: tuple[tuple[int, int], ...]) -> Permissions:
    """Return the `Permissions` of these (domid, mask) pairs."""
    return Permissions(entries)


def parse_permissions(words: Iterable[bytes]) -> Permissions:
    """Parse entries such as b"n3", b"r0".

    Raises:
        Refusal: EINVAL: there are no entries, or one is no permission.
    """
    entries: list[tuple[int, int]] = []
    for word in words:
        match = _PERMISSION.fullmatch(word)
        if match is None or int(match[2]) > _DOMID_MAX:
            raise Refusal(errno.EINVAL)
        entries.append((int(match[2]), _LETTERS.index(match[1])))
    if not entries:
        raise Refusal(errno.EINVAL)
    return permissions(tuple(entries))
