"""A directory of the store with typed keys; and the other end's, where every value is checked before it is used."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from xenbusd.bus.nodes import NodeType
from xenbusd.errors import AccessDenied, NodeNotFound, NodeValueError
from xenbusd.ids import Domid
from xenbusd.store.client import StoreClient

T = TypeVar("T")

_REQUIRED: Any = object()


class Directory:
    """A directory whose keys have types.

    Args:
        store: our session.
        path: absolute.
    """

    __slots__ = ("_store", "path")

    def __init__(self, store: StoreClient, path: str) -> None:
        self._store = store
        self.path = path

    async def read(self, key: str, kind: NodeType[T], *, default: T = _REQUIRED) -> T:
        """Read one key, once. Keep the value that is returned: the node's writer may change it at any time.

        Args:
            key: relative to the directory.
            kind: the type that its value must have.
            default: returned when the key is absent; without one, absence is an error.

        Raises:
            NodeValueError: the key is absent, or its value is not of this kind.
        """
        path = f"{self.path}/{key}"
        try:
            raw = await self._store.read(path)
        except (NodeNotFound, AccessDenied):
            if default is _REQUIRED:
                raise NodeValueError(f"{path} is missing; it should hold a {kind.name}", path=path) from None
            return default
        return kind.read(path, raw)


class Otherend(Directory):
    """The other end's directory.

    Args:
        store: our session.
        domid: the other end's domain, from a node that the other end cannot write (T11).
        path: the other end's directory, likewise.
    """

    __slots__ = ("domid",)

    def __init__(self, store: StoreClient, domid: Domid, path: str) -> None:
        super().__init__(store, path)
        self.domid = domid


async def read_all(store: StoreClient, *paths: str) -> list[bytes | None]:
    """Read several nodes at once; None for one that does not exist, or that we may not read (T9)."""
    answers = await asyncio.gather(*map(store.read, paths), return_exceptions=True)
    values: list[bytes | None] = []
    for answer in answers:
        if isinstance(answer, bytes):
            values.append(answer)
        elif isinstance(answer, NodeNotFound | AccessDenied):
            values.append(None)
        else:
            raise answer
    return values
