"""Two names of a disk of domain 3, and what tests of the toolstack do to the nodes of such a pair."""

from __future__ import annotations

import asyncio

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.ids import DeviceClass, Devid, Domid
from xenbusd.store.client import StoreClient

ID = DeviceId(DeviceClass("vbd"), Domid(3), Devid(51712))
ELSEWHERE = DeviceId(DeviceClass("vbd"), Domid(3), Devid(51712), Domid(7))
"""The same with its backend in a driver domain."""
BACK, FRONT = ID.backend_path, ID.frontend_path


async def tree(store: StoreClient, path: str = "/local") -> dict[str, bytes]:
    """All nodes from `path` down, with their values."""
    nodes = {path: await store.read(path)}
    for name in await store.directory(path):
        nodes |= await tree(store, f"{path}/{name}")
    return nodes


async def set_states(store: StoreClient, backend: State, frontend: State) -> None:
    """Write both ends' states."""
    await asyncio.gather(
        store.write(BACK + "/state", str(int(backend))), store.write(FRONT + "/state", str(int(frontend)))
    )
