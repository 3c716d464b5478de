"""A watch as its holder sees it: hints that something below a path may have changed.

Events coalesce, repeat and get lost, so hints are not a queue but a set, and a bounded one: a peer that writes its node
a million times costs one entry (T12, XSA-349). The holder re-reads the nodes that it uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from xenbusd.errors import LocalProtocolError, XenbusdError

HINTS_MAX = 1024
"""Different hints kept; beyond that, the watched path itself is the only one: re-read everything below it."""


class Watch:
    """A registered watch. Made by `StoreClient.watch`.

    Args:
        path: the watched path.
        depth: components below `path` that a hint keeps; 0: the only hint is `path` itself.
        wake: called in a loop turn of its own when a hint arrives while there was none.
        unwatch: gives the watch back.
    """

    def __init__(
        self,
        path: str,
        *,
        depth: int,
        wake: Callable[[], None] | None,
        unwatch: Callable[[Watch], Awaitable[None]],
    ) -> None:
        self.path = path
        self.token = ""
        """Unique among the client's watches; constant in size."""
        self.depth = depth
        self._prefix = path if path.endswith("/") else path + "/"
        self._wake = wake
        self._give_back = unwatch
        self._hints: set[str] = set()
        self._hinted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._error: XenbusdError | None = None

    def __repr__(self) -> str:
        return f"Watch({self.path!r}, token={self.token!r}, hints={len(self._hints)})"

    def take(self) -> set[str]:
        """Return the hints since the last call, and forget them.

        Returns: paths, cut to `depth` components below `path`; `path` itself means: re-read everything below it.

        Raises:
            StoreLost: the client was closed.
            StoreError: the store refused to register the watch again after it was lost.
            LocalProtocolError: it was given back by `unwatch`.
        """
        if self._error is not None and not self._hints:
            raise self._error
        hints, self._hints = self._hints, set()
        if self._error is None:
            self._hinted.clear()
        return hints

    async def wait(self) -> set[str]:
        """Wait until there is a hint, then `take`.

        Raises:
            StoreLost, StoreError, LocalProtocolError: as `take`.
        """
        while True:
            await self._hinted.wait()
            if hints := self.take():
                return hints

    async def unwatch(self) -> None:
        """Give the watch back: no hint comes after this. Idempotent; never fails because the store has gone."""
        if self._error is None:
            self._error = LocalProtocolError(f"the watch on {self.path} was given back; nothing will come of it")
        self._hints.clear()
        self._hinted.set()
        await self._give_back(self)

    def hint(self, path: str) -> None:
        """Take in an event's path (the client calls this)."""
        hints = self._hints
        if self.path in hints:
            return
        if self.depth and path.startswith(self._prefix):
            below = path[len(self._prefix) :].split("/", self.depth)[: self.depth]
            path = self._prefix + "/".join(below)
        else:
            # Also where an ancestor was removed, or the event is spurious: no finer hint is known (T5).
            path = self.path
        if not hints:
            self._rouse()
        if path == self.path or len(hints) >= HINTS_MAX:
            hints.clear()
            path = self.path
        hints.add(path)

    def fail(self, error: XenbusdError) -> None:
        """Take note that no hint will come any more (the client calls this); the first reason stays."""
        if self._error is None:
            self._error = error
            self._rouse()

    def _rouse(self) -> None:
        self._hinted.set()
        if self._wake is not None:
            self._loop.call_soon(self._wake)
