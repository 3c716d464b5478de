"""Changing a device in use, by keys of its backend's directory that its driver watches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.errors import NodeNotFound, OtherendTimeout, UsageError
from xenbusd.store.client import StoreClient
from xenbusd.store.transaction import Transaction
from xenbusd.toolstack.pair import following, observe


async def write_live(store: StoreClient, id: DeviceId, keys: Mapping[str, str]) -> None:
    """Change keys of a backend's directory in one transaction.

    Raises:
        UsageError: there is no such device.
    """

    async def body(tx: Transaction) -> None:
        await tx.read(id.backend_path + "/state")  # a removed directory stays removed (T7)
        for key, value in keys.items():
            await tx.write(f"{id.backend_path}/{key}", value)

    try:
        await store.transaction(body)
    except NodeNotFound:
        raise UsageError(f"there is no device {id}; `xenbusctl list` shows those there are") from None


async def pause(store: StoreClient, id: DeviceId, *, paused: bool, deadline_s: float) -> None:
    """Ask a backend to pause or to resume, and wait until its key `paused` says that it has.

    Raises:
        UsageError: there is no such device.
        OtherendTimeout: it has not done so in time, or it cannot resume; the message has the backend's error node.
    """
    before = await observe(store, id)
    await write_live(store, id, {"pause": str(int(paused))})
    seen = before
    try:
        async with asyncio.timeout(deadline_s), following(store, id) as next_state:
            while True:
                seen = await next_state()
                if await _says_paused(store, id) is paused:
                    return
                if seen.backend is not State.CONNECTED:
                    raise OtherendTimeout(f"{id} is not in use: its backend is at {seen.backend.title}")
                if not paused and seen.backend_error not in (None, before.backend_error):
                    break
    except TimeoutError:
        pass
    why = seen.backend_error or "no reason is reported"
    raise OtherendTimeout(f"{id} has not {'paused' if paused else 'resumed'}: {why}")


async def _says_paused(store: StoreClient, id: DeviceId) -> bool:
    try:
        return await store.read(id.backend_path + "/paused") == b"1"
    except NodeNotFound:
        return False
