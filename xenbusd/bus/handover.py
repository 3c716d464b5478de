"""How one backend process hands a connected ring to the next: by a note in the store.

A process that is told to stop answers what it has taken, then leaves `ring-left-at`, its rsp_prod, in its directory,
and `state` as it is. The next one takes the note away and goes on from there. Without a note the process before was
killed: answers may stand in slots whose requests were not done yet, so what lies in the ring cannot be trusted to be
requests. Then the device is closed, and a frontend that keeps shadows of its requests sends them again.
"""

from __future__ import annotations

from contextlib import suppress

from xenbusd.bus.nodes import unsigned
from xenbusd.bus.state import State, parse_state
from xenbusd.errors import NodeNotFound, NodeValueError
from xenbusd.store.client import StoreClient
from xenbusd.store.transaction import Transaction

KEY = "ring-left-at"

INDEX = unsigned(name="ring index")


async def leave(store: StoreClient, path: str, rsp_prod: int) -> None:
    """Write the note into the backend's directory `path`, unless the device has gone or is closing."""

    async def body(tx: Transaction) -> None:
        if parse_state(await tx.read(path + "/state")) is State.CONNECTED:
            await tx.write(f"{path}/{KEY}", str(rsp_prod))

    with suppress(NodeNotFound):
        await store.transaction(body)


async def take_over(store: StoreClient, path: str) -> int | None:
    """Take the note away. Return the ring's rsp_prod; None if there is no note that makes sense."""

    async def body(tx: Transaction) -> bytes:
        raw = await tx.read(f"{path}/{KEY}")
        await tx.rm(f"{path}/{KEY}")
        return raw

    try:
        return INDEX.read(f"{path}/{KEY}", await store.transaction(body))
    except (NodeNotFound, NodeValueError):
        return None
