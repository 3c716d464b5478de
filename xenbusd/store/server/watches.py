"""Registered watches: which connections are notified of a change at which path. Pure.

Watches are kept by the path they are on. A change searches only its own path and those above it, so that its cost does
not depend on the number of watches. A listener may remove watches while it is notified.

Source: docs/misc/xenstore.txt (WATCH), tools/xenstore/xenstored_watch.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from xenbusd.store.server.domains import Domain
from xenbusd.store.server.tree import ROOT


class Listener(Protocol):
    """The part of a connection that its watches use."""

    @property
    def domain(self) -> Domain:
        """The domain that it acts as."""

    def notify(self, watch: Watch, path: bytes) -> None:
        """Keep an event until the connection takes it."""

    def discard(self, watch: Watch) -> None:
        """Drop the events that are kept for a watch that was removed."""


class Watch:
    """One registration.

    Args:
        caller: the connection that is notified.
        path: the absolute path, or the name of a special watch such as @releaseDomain.
        token: the bytes by which the caller recognises the watch.
        cut: bytes that are taken off the front of each path reported: not 0 if it was given as a relative path.
    """

    __slots__ = ("caller", "cut", "path", "token")

    def __init__(self, caller: Listener, path: bytes, token: bytes, cut: int) -> None:
        self.caller = caller
        self.path = path
        self.token = token
        self.cut = cut

    def event(self, path: bytes) -> bytes:
        """Return the payload of a WATCH_EVENT for a change at `path`."""
        return b"%b\0%b\0" % (path[self.cut :], self.token)


class Watches:
    """All watches of all callers."""

    def __init__(self) -> None:
        self._on: dict[bytes, dict[Watch, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._on)

    def add(self, watch: Watch) -> None:
        """Register a watch."""
        self._on.setdefault(watch.path, {})[watch] = None

    def remove(self, watch: Watch) -> None:
        """Forget a watch that is registered."""
        here = self._on[watch.path]
        del here[watch]
        if not here:
            del self._on[watch.path]

    def on(self, path: bytes) -> Iterator[Watch]:
        """Yield the watches on just this path, or of this special name."""
        yield from tuple(self._on.get(path, ()))

    def covering(self, path: bytes) -> Iterator[Watch]:
        """Yield the watches on this path and on all paths above it, the nearest first."""
        on = self._on
        here = path
        while True:
            found = on.get(here)
            if found is not None:
                yield from tuple(found)
            if here == ROOT:
                return
            here = here[: here.rindex(b"/")] or ROOT
