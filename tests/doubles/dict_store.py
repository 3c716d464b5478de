"""A store that is a dictionary, and a frontend's directory in it."""

from __future__ import annotations

import errno
from typing import cast

from xenbusd.bus.otherend import Otherend
from xenbusd.errors import NodeNotFound
from xenbusd.ids import Domid
from xenbusd.store.client import StoreClient

HOME = "/local/domain/3/device/vbd/51712"


class DictStore:
    """A store that is a dictionary; a value that is an exception is raised. It counts the reads."""

    def __init__(self, nodes: dict[str, bytes | Exception]) -> None:
        self.nodes = nodes
        self.reads: list[str] = []

    async def read(self, path: str) -> bytes:
        """As StoreClient.read."""
        self.reads.append(path)
        value = self.nodes.get(path, NodeNotFound("READ", path, errno.ENOENT))
        if isinstance(value, Exception):
            raise value
        return value


def directory(**keys: bytes | Exception) -> tuple[Otherend, DictStore]:
    """A frontend's directory that holds these keys."""
    store = DictStore({f"{HOME}/{key.replace('_', '-')}": value for key, value in keys.items()})
    return Otherend(cast("StoreClient", store), Domid(3), HOME), store
