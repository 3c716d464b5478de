"""Taking a device pair apart, as libxl does.

Source: tools/libs/light/libxl_device.c (libxl__initiate_device_generic_remove).
"""

from __future__ import annotations

import asyncio

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State, parse_state
from xenbusd.errors import NodeNotFound, OtherendTimeout, UsageError
from xenbusd.store.client import StoreClient
from xenbusd.store.prune import prune
from xenbusd.store.transaction import Transaction
from xenbusd.toolstack.deadlines import DETACH_S, SCRIPT_S
from xenbusd.toolstack.pair import PairState, following, observe


async def detach(store: StoreClient, id: DeviceId, *, force: bool = False, deadline_s: float = DETACH_S) -> None:
    """Take a pair apart: `online` 0 and `state` 5 in one transaction, wait for 6, remove both directories (T52).

    Windows takes the two writes together for a request to eject the device (T56).

    Args:
        force: remove the frontend's directory first, and the backend's even if it does not close.
        deadline_s: seconds for the backend to close.

    Raises:
        UsageError: there is no such device.
        OtherendTimeout: the backend did not close in time; it will once its frontend does. With `force` the directories
            were removed all the same.
    """

    async def begin(tx: Transaction) -> None:
        if force:
            await prune(tx, id.frontend_path, f"/local/domain/{id.frontend_domid}/device")
        try:
            state = await tx.read(id.backend_path + "/state")
        except NodeNotFound:
            return
        await tx.write(id.backend_path + "/online", "0")
        if parse_state(state) is not State.CLOSED:
            await tx.write(id.backend_path + "/state", str(int(State.CLOSING)))

    seen = await observe(store, id)
    if seen.backend is State.UNKNOWN and seen.frontend is State.UNKNOWN:
        raise UsageError(f"there is no device {id}; `xenbusctl list` shows those there are")
    await store.transaction(begin)
    late: OtherendTimeout | None = None
    try:
        await _wait_closed(store, id, deadline_s)
    except OtherendTimeout as error:
        if not force:
            raise
        late = error
    await remove(store, id)
    if late is not None:
        raise OtherendTimeout(f"{late}; its directories were removed all the same")


async def _wait_closed(store: StoreClient, id: DeviceId, deadline_s: float) -> None:
    """Wait for the backend's Closed, then for the `remove` script where the backend's domain runs one for us."""
    seen: PairState | None = None
    try:
        async with following(store, id) as next_state:
            async with asyncio.timeout(deadline_s):
                while True:
                    seen = await next_state()
                    if seen.backend in (State.CLOSED, State.UNKNOWN):
                        break
            async with asyncio.timeout(SCRIPT_S):
                while seen.script and seen.hotplug_status == "connected" and seen.backend is State.CLOSED:
                    seen = await next_state()
    except TimeoutError:
        seen = seen or await observe(store, id)
        raise OtherendTimeout(
            f"{id} has not closed after {deadline_s:g} s: the backend is at {seen.backend.title}, "
            f"the frontend in domain {id.frontend_domid} at {seen.frontend.title} (in use there?)"
        ) from None


async def remove(store: StoreClient, id: DeviceId) -> None:
    """Remove both directories, both error nodes, and the parents that this leaves empty."""
    home = "/local/domain"

    async def body(tx: Transaction) -> None:
        await prune(tx, id.frontend_path, f"{home}/{id.frontend_domid}/device")
        await prune(tx, id.backend_path, f"{home}/{id.backend_domid}/backend")
        for side, domid in ((Side.BACKEND, id.backend_domid), (Side.FRONTEND, id.frontend_domid)):
            await prune(tx, id.error_path(side).removesuffix("/error"), f"{home}/{domid}/error")

    await store.transaction(body)
