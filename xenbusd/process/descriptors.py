"""The limit on open file descriptors."""

from __future__ import annotations

import resource

ENOUGH = 65536
"""Descriptors. A connected device needs two or three: a thousand devices exceed the usual soft limit of 1024."""


def allow_many() -> None:
    """Raise this process's soft limit on open files to `ENOUGH`, or as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
