"""Grant references: their range, and how messages name them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

GREF_MAX = 0xFFFFFFFF
"""grant_ref_t is a u32 (xen/include/public/grant_table.h)."""

DOMID_MAX = 0xFFFF
"""domid_t is a u16 (xen/include/public/xen.h); a larger number must not be truncated to another domain's."""

_NAMED_AT_MOST = 16


def in_words(grefs: Sequence[int]) -> str:
    """Name references in a message, and not all of them when there are very many."""
    named = " ".join(map(str, grefs[:_NAMED_AT_MOST]))
    return named if len(grefs) <= _NAMED_AT_MOST else f"{named} ... ({len(grefs)} in all)"
