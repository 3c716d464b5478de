"""Waiting until both ends of a pair are Connected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.errors import OtherendTimeout
from xenbusd.store.client import StoreClient
from xenbusd.toolstack.deadlines import ATTACH_S
from xenbusd.toolstack.pair import PairState, following
from xenbusd.toolstack.why import stuck


async def wait_connected(
    store: StoreClient, id: DeviceId, *, deadline_s: float = ATTACH_S, progress: Callable[[str], None] | None = None
) -> None:
    """Wait until both ends are Connected.

    Args:
        progress: called after each change with a sentence: which end waits for what.

    Raises:
        OtherendTimeout: the deadline passed, or an end gave up earlier; the message says which end waits for what.
    """
    seen: PairState | None = None
    try:
        async with asyncio.timeout(deadline_s), following(store, id) as next_state:
            while True:
                seen = await next_state()
                if seen.backend in (State.CONNECTED, State.RECONFIGURED) and seen.frontend is State.CONNECTED:
                    return
                gave_up = seen.backend in (State.UNKNOWN, State.CLOSING, State.CLOSED) or seen.hotplug_error
                if gave_up and (seen.backend_error or seen.hotplug_error or seen.backend is State.UNKNOWN):
                    raise OtherendTimeout(f"{id} does not connect: {stuck(seen, id)}")
                if progress is not None:
                    progress(stuck(seen, id))
    except TimeoutError:
        why = stuck(seen, id) if seen is not None else "the store does not answer"
        raise OtherendTimeout(f"{id} is not Connected after {deadline_s:g} s: {why}") from None
