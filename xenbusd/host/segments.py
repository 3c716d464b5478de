"""Checks that both hosts make on a grant copy before anything is copied. Pure."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from xenbusd.errors import GrantError
from xenbusd.host.grefs import DOMID_MAX, GREF_MAX
from xenbusd.host.interface import Copy
from xenbusd.ids import PAGE_SIZE


def check(segments: Sequence[Copy]) -> list[int]:
    """Return a status for each segment: 0 if it may be submitted, EINVAL if it leaves its page, or if its reference or
    domid is out of range.

    The kernel would refuse the whole batch for one that leaves its page.

    Raises:
        GrantError: our own memory is not contiguous, or is read-only where it must be written: our bug.
    """
    statuses = []
    for to_grant, domid, gref, offset, local in segments:
        if not local.contiguous or (local.readonly and not to_grant):
            raise GrantError(
                "xengnttab_grant_copy", errno.EFAULT, f"{len(segments)} segments, one without proper local memory"
            )
        inside = offset >= 0 and offset + local.nbytes <= PAGE_SIZE
        named = 0 <= gref <= GREF_MAX and 0 <= domid <= DOMID_MAX
        statuses.append(0 if inside and named else errno.EINVAL)
    return statuses
