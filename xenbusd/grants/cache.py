"""Grants that stay mapped: a backend maps each page of the frontend's once, and unmaps the least recently used.

To map a page costs a hypercall, and to unmap it makes every processor flush its TLB; a frontend that uses the same
pages again and again ("persistent grants", T36) spares both. Nothing limits how many different pages a frontend names
in the course of time, so the cache has a limit of its own. The limit may be passed while requests are under way, since
no page in use can be unmapped: the caller begins no more until it has trimmed the cache.
"""

from __future__ import annotations

from collections import deque

from xenbusd.host.interface import Grants, Mapping
from xenbusd.ids import Domid, Gref


class GrantCache:
    """Pages of one frontend, kept mapped.

    Args:
        grants: the grant tables.
        domid: the frontend's domain.
        limit: pages that stay mapped once `trim` was called.
    """

    __slots__ = ("_domid", "_grants", "_limit", "_mappings", "mapped", "used")

    def __init__(self, grants: Grants, domid: Domid, limit: int) -> None:
        self._grants = grants
        self._domid = domid
        self._limit = limit
        self._mappings: dict[int, Mapping] = {}
        self.mapped: dict[int, memoryview] = {}
        """The pages that are mapped now, by reference. A caller on its fast path may take pages from this mapping
        directly, if it adds their references to `used`."""
        self.used: deque[tuple[int, ...]] = deque(maxlen=limit)
        """The references of the latest requests, the newest last: `limit` requests, enough to name every page
        in use."""

    @property
    def over_limit(self) -> bool:
        """Whether more pages are mapped than may stay."""
        return len(self.mapped) > self._limit

    def pages(self, grefs: tuple[int, ...]) -> list[memoryview]:
        """The pages of these references, each mapped if it is not yet, writable, 4096 bytes.

        Raises:
            GrantError: one of them cannot be mapped; those before it stay mapped.
        Blocks: in the kernel while it maps.
        """
        mapped = self.mapped
        self.used.append(grefs)
        try:
            return [mapped[gref] for gref in grefs]
        except KeyError:
            return [mapped[gref] if gref in mapped else self._map(gref) for gref in grefs]

    def _map(self, gref: int) -> memoryview:
        mapping = self._grants.map(self._domid, [Gref(gref)])
        self._mappings[gref] = mapping
        self.mapped[gref] = mapping.view
        return mapping.view

    def trim(self) -> None:
        """Unmap the least recently used pages, down to the limit.

        Raises:
            LocalProtocolError: a slice of one of them is still alive.
        """
        keep: set[int] = set()
        for grefs in reversed(self.used):
            if len(keep) + len(grefs) > self._limit:
                break
            keep.update(grefs)
        surplus = max(len(self.mapped) - self._limit, 0)
        for gref in [gref for gref in self.mapped if gref not in keep][:surplus]:
            del self.mapped[gref]
            self._mappings.pop(gref).unmap()

    def close(self) -> None:
        """Unmap everything: no page may be in use. Idempotent."""
        self._limit = 0
        self.used.clear()
        self.trim()
