"""A device pair as a toolstack sees it: the states of both ends, the hotplug script's report, and error nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from xenbusd.bus.nodes import quote
from xenbusd.bus.paths import DeviceId, backend_root, parse_backend, parse_number
from xenbusd.bus.state import Side, State, parse_state
from xenbusd.errors import NodeNotFound, StoreError
from xenbusd.ids import DeviceClass, Domid
from xenbusd.store.client import StoreClient


@dataclass(frozen=True)
class PairState:
    """A pair at one moment. A state is UNKNOWN if its directory is not there."""

    backend: State
    frontend: State
    online: bool
    hotplug_status: str | None
    hotplug_error: str | None
    backend_error: str | None
    frontend_error: str | None
    script: str | None


async def observe(store: StoreClient, id: DeviceId) -> PairState:
    """Read the present state of a pair. An unreadable node counts as one that is not there."""

    async def value(path: str) -> bytes | None:
        try:
            return await store.read(path)
        except StoreError:
            return None

    def shown(raw: bytes | None) -> str | None:
        return None if raw is None else quote(raw)[1:-1]

    back, front = id.backend_path, id.frontend_path
    own, otherend, online, status, text, script, back_error, front_error = await asyncio.gather(
        value(back + "/state"),
        value(front + "/state"),
        value(back + "/online"),
        value(back + "/hotplug-status"),
        value(back + "/hotplug-error"),
        value(back + "/script"),
        value(id.error_path(Side.BACKEND)),
        value(id.error_path(Side.FRONTEND)),
    )
    return PairState(
        backend=parse_state(own),
        frontend=parse_state(otherend),
        online=online == b"1",
        hotplug_status=shown(status),
        hotplug_error=None if text is None else text.decode("utf-8", "replace"),
        backend_error=None if back_error is None else back_error.decode("utf-8", "replace"),
        frontend_error=shown(front_error),
        script=shown(script),
    )


@asynccontextmanager
async def following(store: StoreClient, id: DeviceId) -> AsyncIterator[Callable[[], Awaitable[PairState]]]:
    """Watch both directories and both error nodes. Yields a coroutine function that returns the pair's state: at once
    the first time, and after a change from then on."""
    changed = asyncio.Event()
    paths = (id.backend_path, id.frontend_path, id.error_path(Side.BACKEND), id.error_path(Side.FRONTEND))
    watches = [await store.watch(path, wake=changed.set) for path in paths]

    async def next_state() -> PairState:
        await changed.wait()
        changed.clear()
        for watch in watches:
            watch.take()
        return await observe(store, id)

    try:
        yield next_state
    finally:
        for watch in watches:
            await watch.unwatch()


async def devices(store: StoreClient, backend_domid: Domid | None = None) -> list[DeviceId]:
    """Find every device, whoever made it.

    Args:
        store: a session that may read the backends' directories.
        backend_domid: the domain of the backends; None: all domains, in order of their numbers, for which the session
            must be domain 0's.
    """

    async def names(path: str) -> list[str]:
        try:
            return await store.directory(path)
        except NodeNotFound:
            return []

    if backend_domid is not None:
        backend_domids = [backend_domid]
    else:
        numbers = [parse_number(name) for name in await names("/local/domain")]
        backend_domids = [Domid(number) for number in sorted(number for number in numbers if number is not None)]
    found = []
    for home in backend_domids:
        for kind in map(DeviceClass, await names(f"/local/domain/{home}/backend")):
            root = backend_root(home, kind)
            for domid in await names(root):
                for devid in await names(f"{root}/{domid}"):
                    id = parse_backend(root, f"{root}/{domid}/{devid}", home, kind)
                    if id is not None:
                        found.append(id)
    return found
