"""The limit on open file descriptors."""

from __future__ import annotations

import resource

ENOUGH = 65536
"""The soft limit to ask for: a connected device needs two or three descriptors, and so a thousand devices exceed the
usual limit of 1024."""


def allow_many() -> None:
    """Raise this process's soft limit on open files to `ENOUGH`, or as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
