"""A directory of the store with typed keys; and the other end's, where everything is checked before it is believed."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from xenbusd.bus.nodes import NodeType, gref, port, unsigned
from xenbusd.errors import AccessDenied, NodeNotFound, NodeValueError
from xenbusd.ids import Domid, Gref, Port
from xenbusd.store.client import StoreClient

T = TypeVar("T")

_REQUIRED: Any = object()

QUEUES = unsigned(0xFFFF, "number of queues")


class Directory:
    """A directory whose keys have types.

    Args:
        store: our session.
        path: absolute.
    """

    __slots__ = ("path", "store")

    def __init__(self, store: StoreClient, path: str) -> None:
        self.store = store
        self.path = path

    async def read(self, key: str, kind: NodeType[T], *, default: T = _REQUIRED) -> T:
        """Read one key, once; keep what you got, for its writer may change it at any time.

        Args:
            key: relative to the directory.
            kind: what it must be.
            default: taken when the key is absent; without one, absence is an error.

        Raises:
            NodeValueError: absent, or not a `kind`.
        """
        path = f"{self.path}/{key}"
        try:
            raw = await self.store.read(path)
        except (NodeNotFound, AccessDenied):
            if default is _REQUIRED:
                raise NodeValueError(f"{path} is missing; it should hold a {kind.name}", path=path) from None
            return default
        return kind.read(path, raw)


class Otherend(Directory):
    """The other end.

    Args:
        store: our session.
        domid: its domain, from a node that it cannot write (T11).
        path: its directory, likewise.
    """

    __slots__ = ("domid", "state_path")

    def __init__(self, store: StoreClient, domid: Domid, path: str) -> None:
        super().__init__(store, path)
        self.domid = domid
        self.state_path = path + "/state"

    async def read_offers(self, max_order: int, max_queues: int) -> list[tuple[list[Gref], Port]]:
        """Read a frontend's ring references and event channel, for each of its queues (T28).

        `multi-queue-num-queues` absent or 1: the keys stand at the top. Otherwise those of queue N are in `queue-<N>/`,
        but `ring-page-order`, which is all queues', stays at the top.
        `ring-page-order` absent: one page in `ring-ref`. Present, even as 0: `ring-ref0`, `ring-ref1`, ...

        Raises:
            NodeValueError: a key is missing or bad, or the order or the number of queues is above what was offered.
        Source: Linux, drivers/block/xen-blkback/xenbus.c (connect_ring, read_per_ring_refs).
        """
        queues = await self.read("multi-queue-num-queues", QUEUES, default=1)
        if not 1 <= queues <= max_queues:
            raise NodeValueError(f"{self.path}/multi-queue-num-queues is {queues}; 1 to {max_queues} can be had")
        order = await self.read("ring-page-order", unsigned(max_order, "ring page order"), default=-1)
        names = ["ring-ref"] if order < 0 else [f"ring-ref{page}" for page in range(1 << order)]
        prefixes = [""] if queues == 1 else [f"queue-{number}/" for number in range(queues)]
        return [await self._read_queue(prefix, names) for prefix in prefixes]

    async def _read_queue(self, prefix: str, names: list[str]) -> tuple[list[Gref], Port]:
        grefs = await asyncio.gather(*(self.read(prefix + name, gref) for name in names))
        return [Gref(number) for number in grefs], Port(await self.read(prefix + "event-channel", port))
