"""How many descriptors a process of ours may have open."""

from __future__ import annotations

import resource

ENOUGH = 65536
"""A connected device costs two or three; a thousand devices do not fit into the usual soft limit of 1024."""


def allow_many() -> None:
    """Raise this process's soft limit on open files up to `ENOUGH`, or as far as the hard limit lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
