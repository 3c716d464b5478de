"""The operations of a client on nodes, the same within a transaction and outside one."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from asyncio import Future
from functools import lru_cache
from typing import Any

from xenbusd.errors import QuotaExceeded, StoreError
from xenbusd.store.session import names
from xenbusd.store.wire import Op, check_path, check_perms

RESTARTS_MAX = 20
"""How many times a listing in parts begins again because the node's children changed meanwhile."""

_READ = int(Op.READ)
_WRITE = int(Op.WRITE)


@lru_cache(maxsize=4096)
def wire_path(path: str) -> bytes:
    """Return a path as the beginning of a payload. Cached, since the same few paths are used again and again.

    Raises:
        InvalidPath
    """
    return check_path(path) + b"\0"


class Accessor(ABC):
    """The operations on nodes. All but `directory` return a future at once, the request being queued already.

    A bad path, permission or size is an error of the call itself (pyxs's `InvalidPath`, `InvalidPermission`,
    `InvalidPayload`: each a ValueError), and nothing is queued; an error that the store answers is one of the future.
    """

    @abstractmethod
    def _ask(self, op: int, path: str, payload: bytes) -> Future[Any]: ...

    def read(self, path: str) -> Future[bytes]:
        """Return the value of a node.

        Raises:
            NodeNotFound, AccessDenied
        """
        return self._ask(_READ, path, wire_path(path))

    def write(self, path: str, value: str | bytes) -> Future[None]:
        """Set the value of a node; it and its parents are made if they do not exist.

        Raises:
            AccessDenied, QuotaExceeded
        """
        raw = value.encode() if isinstance(value, str) else value
        return self._ask(_WRITE, path, wire_path(path) + raw)

    def mkdir(self, path: str) -> Future[None]:
        """Make a node with an empty value, and its parents; one that exists is left as it is.

        Raises:
            AccessDenied, QuotaExceeded
        """
        return self._ask(Op.MKDIR, path, wire_path(path))

    def rm(self, path: str) -> Future[None]:
        """Remove a node and all below it. One that does not exist is no error as long as its parent does.

        Raises:
            NodeNotFound, AccessDenied
        """
        return self._ask(Op.RM, path, wire_path(path))

    def get_perms(self, path: str) -> Future[list[str]]:
        """Return a node's permissions, such as `["n3", "r0"]`: the owner with the default for everybody, then others.

        Raises:
            NodeNotFound, AccessDenied
        """
        return self._ask(Op.GET_PERMS, path, wire_path(path))

    def set_perms(self, path: str, perms: list[str]) -> Future[None]:
        """Set a node's permissions; the first entry names the owner.

        Raises:
            NodeNotFound, AccessDenied
        """
        return self._ask(Op.SET_PERMS, path, wire_path(path) + b"".join(perm + b"\0" for perm in check_perms(perms)))

    async def directory(self, path: str) -> list[str]:
        """Return the names of a node's children, however many.

        Raises:
            NodeNotFound, AccessDenied
            QuotaExceeded: the listing passes 4096 bytes and this store cannot send it in parts.
        """
        try:
            listing: list[str] = await self._ask(Op.DIRECTORY, path, wire_path(path))
        except QuotaExceeded as too_large:
            if too_large.errno != errno.E2BIG or too_large.context.get("closed"):
                raise
            try:
                return await self._directory_in_parts(path)
            except StoreError as error:
                if error.errno in (errno.ENOSYS, errno.EINVAL):
                    raise too_large from error
                raise
        return listing

    async def _directory_in_parts(self, path: str) -> list[str]:
        """List by DIRECTORY_PART: each answer has a generation, some names, and at the very end an empty name."""
        for _ in range(RESTARTS_MAX):
            generation, listing = b"", b""
            while True:
                offset = str(len(listing)).encode() + b"\0"
                answer: bytes = await self._ask(Op.DIRECTORY_PART, path, wire_path(path) + offset)
                now, _, part = answer.partition(b"\0")
                if listing and now != generation:
                    break
                generation = now
                listing += part
                if listing == b"\0" or listing.endswith(b"\0\0"):
                    return names(listing)
                if not part:
                    raise StoreError(Op.DIRECTORY_PART.name, path, errno.EIO)
        raise StoreError(Op.DIRECTORY_PART.name, path, errno.EAGAIN)
