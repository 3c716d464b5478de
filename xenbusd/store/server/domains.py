"""The domains that the store knows, and how much of the store each of them uses. Pure.

Source: tools/xenstore/xenstored_domain.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from xenbusd.ids import DOMID_FIRST_RESERVED
from xenbusd.store.server.permissions import ALL, Permissions
from xenbusd.store.server.quotas import Quotas, Refusal

DOMID_SELF = 0x7FF0
"""The domain that asks (xen.h, DOMID_SELF)."""


class Domain:
    """One life of a domain: a domid that is reused belongs to another `Domain`."""

    def __init__(self, domid: int, quotas: Quotas) -> None:
        self.domid = domid
        self.quotas = quotas
        self.privileged = domid == 0
        self.home = b"/local/domain/%d/" % domid
        """The path that its relative paths start from."""
        self.target: int | None = None
        """The domain that it acts for."""
        self.introduced = self.privileged
        self.released = False
        self.watches = 0
        self.transactions = 0

    def allow(self, perms: Permissions) -> int:
        """Return the domain's rights to a node of these permissions: a mask of READ, WRITE, OWN."""
        return ALL if self.privileged else perms.allow(self.domid, self.target)


class Domains:
    """Every `Domain` alive."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._known: dict[int, Domain] = {}
        self.dom0 = self.get(0)

    def __iter__(self) -> Iterator[Domain]:
        return iter(list(self._known.values()))

    def get(self, domid: int) -> Domain:
        """Return the domain; add it if it is not known yet.

        Raises:
            Refusal: EINVAL: no domain can have this number.
        """
        domain = self._known.get(domid)
        if domain is None:
            if not 0 <= domid < DOMID_FIRST_RESERVED:
                raise Refusal(errno.EINVAL)
            domain = self._known[domid] = Domain(domid, self._quotas)
        return domain

    def introduced(self, domid: int) -> Domain:
        """Return a domain that has been introduced, other than domain 0.

        Raises:
            Refusal: EINVAL for domain 0, ENOENT for one that has not been introduced.
        """
        if domid == 0:
            raise Refusal(errno.EINVAL)
        domain = self._known.get(domid)
        if domain is None or not domain.introduced:
            raise Refusal(errno.ENOENT)
        return domain

    def known(self, domid: int) -> Domain | None:
        """Return a domain if it is known, else None."""
        return self._known.get(domid)

    def forget(self, domid: int) -> Domain | None:
        """Remove a domain, also as the target of others, and return it; None if it is unknown."""
        for other in self._known.values():
            if other.target == domid:
                other.target = None
        domain = self._known.pop(domid, None)
        if domain is not None:
            domain.released = True
        return domain
