"""What a toolstack does to the store: make a device pair, wait for it, take it apart. As libxl does it.

Source: tools/libs/light/libxl_device.c (libxl__device_generic_add, libxl__initiate_device_generic_remove).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from xenbusd.bus.nodes import quote
from xenbusd.bus.paths import DeviceId, backend_root, parse_backend
from xenbusd.bus.state import Side, State, parse_state
from xenbusd.errors import NodeNotFound, OtherendTimeout, StoreError, UsageError
from xenbusd.ids import DOM0, DeviceClass, Domid
from xenbusd.store.client import StoreClient
from xenbusd.store.prune import prune
from xenbusd.store.transaction import Transaction

ATTACH_S = 30.0
DETACH_S = 10.0
"""libxl waits 10 s for a backend's Closed."""

SCRIPT_S = 45.0
"""For the `remove` script, whose own limit is 40 s."""


@dataclass(frozen=True)
class PairState:
    """One look at a pair, as a toolstack sees it. UNKNOWN stands for a directory that is not there."""

    backend: State
    frontend: State
    online: bool
    hotplug_status: str | None
    hotplug_error: str | None
    backend_error: str | None
    frontend_error: str | None
    script: str | None

    def stuck(self, id: DeviceId) -> str:
        """Say which end is waiting for what."""
        front, back = f"the frontend in domain {id.frontend_domid}", f"the backend in domain {id.backend_domid}"
        if self.backend is State.UNKNOWN:
            return "its backend directory is gone"
        if self.hotplug_error:
            return f"the hotplug script reports: {self.hotplug_error}"
        for who, error in ((back, self.backend_error), (front, self.frontend_error)):
            if error:
                return f"{who} reports: {error}"
        if self.backend is State.INITIALISING:
            return f"{back} has not begun; is `xenbusd serve` running there, with a driver for {id.device_class}?"
        if self.backend is State.INIT_WAIT and self.script and self.hotplug_status != "connected":
            return f"{back} waits for its hotplug script ({self.script}) to report"
        if self.frontend in (State.UNKNOWN, State.INITIALISING):
            return (
                f"{back} is at {self.backend.title} and waits for {front}, which has not begun; is its driver running?"
            )
        if self.frontend is State.CONNECTED:
            return f"{front} is Connected and waits for {back}, which is at {self.backend.title}"
        return f"{back} is at {self.backend.title}, {front} at {self.frontend.title}"


async def attach(store: StoreClient, id: DeviceId, back: Mapping[str, str], front: Mapping[str, str]) -> None:
    """Make both directories in one transaction, with libxl's permissions: each end owns its own and may read the other.

    Args:
        store: a session of dom0, or of another domain that may write there.
        id: which device.
        back: more keys of the backend's directory, such as `params`.
        front: more keys of the frontend's directory.

    Raises:
        UsageError: there is such a device already, or no such domain.
    """
    if not await store.is_domain_introduced(id.frontend_domid) and id.frontend_domid != 0:
        raise UsageError(f"there is no domain {id.frontend_domid}: start it first (`xl list` shows those that run)")
    n, b = id.frontend_domid, id.backend_domid
    directories = (
        (
            id.frontend_path,
            [f"n{n}", f"r{b}"],
            {"backend": id.backend_path, "backend-id": str(b), "state": "1", **front},
        ),
        (
            id.backend_path,
            [f"n{b}", f"r{n}"],
            {"frontend": id.frontend_path, "frontend-id": str(n), "online": "1", "state": "1", **back},
        ),
    )

    async def body(tx: Transaction) -> None:
        for path, _, _ in directories:
            try:
                await tx.read(path)
            except NodeNotFound:
                continue
            raise UsageError(f"there is a device {id} already ({path}); detach it first")
        writes: list[Awaitable[None]] = []
        for path, perms, keys in directories:
            writes += [tx.mkdir(path), tx.set_perms(path, perms)]  # what is made below inherits
            writes += [tx.write(f"{path}/{key}", value) for key, value in keys.items()]
        await asyncio.gather(*writes)

    await store.transaction(body)


async def observe(store: StoreClient, id: DeviceId) -> PairState:
    """Read where a pair stands."""

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
    """Watch both directories and both errors; what is yielded returns the next look, at once the first time."""
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


async def wait_connected(
    store: StoreClient, id: DeviceId, *, deadline_s: float = ATTACH_S, progress: Callable[[str], None] | None = None
) -> None:
    """Wait until both ends are Connected.

    Args:
        progress: called with a sentence each time that it changes what is waited for.

    Raises:
        OtherendTimeout: the deadline passed, or an end gave up before; the message says which end waits for what.
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
                    raise OtherendTimeout(f"{id} does not connect: {seen.stuck(id)}")
                if progress is not None:
                    progress(seen.stuck(id))
    except TimeoutError:
        why = seen.stuck(id) if seen is not None else "the store does not answer"
        raise OtherendTimeout(f"{id} is not Connected after {deadline_s:g} s: {why}") from None


async def detach(store: StoreClient, id: DeviceId, *, force: bool = False, deadline_s: float = DETACH_S) -> None:
    """Take a pair apart: `online` 0 and `state` 5 in one transaction, wait for 6, remove both directories.

    Args:
        force: remove the frontend's directory first, and the backend's in any case.
        deadline_s: seconds for the backend to close.

    Raises:
        UsageError: there is no such device.
        OtherendTimeout: without `force`, the backend did not close in time; it will, once its frontend does.
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


async def write_live(store: StoreClient, id: DeviceId, keys: Mapping[str, str]) -> None:
    """Change keys of a backend's directory, together.

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
    """Have a backend pause, or go on, and wait until it says that it has.

    Raises:
        UsageError: there is no such device.
        OtherendTimeout: it has not in time; or it cannot go on, and has said why.
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
    why = seen.backend_error or "nothing is said of why"
    raise OtherendTimeout(f"{id} has not {'paused' if paused else 'resumed'}: {why}")


async def _says_paused(store: StoreClient, id: DeviceId) -> bool:
    try:
        return await store.read(id.backend_path + "/paused") == b"1"
    except NodeNotFound:
        return False


async def remove(store: StoreClient, id: DeviceId) -> None:
    """Remove both directories, both error nodes, and the parents that this leaves empty."""
    home = "/local/domain"

    async def body(tx: Transaction) -> None:
        await prune(tx, id.frontend_path, f"{home}/{id.frontend_domid}/device")
        await prune(tx, id.backend_path, f"{home}/{id.backend_domid}/backend")
        for side, domid in ((Side.BACKEND, id.backend_domid), (Side.FRONTEND, id.frontend_domid)):
            await prune(tx, id.error_path(side).removesuffix("/error"), f"{home}/{domid}/error")

    await store.transaction(body)


async def devices(store: StoreClient, backend_domid: Domid = DOM0) -> list[DeviceId]:
    """Find every device whose backend is in `backend_domid`, whoever made it."""

    async def names(path: str) -> list[str]:
        try:
            return await store.directory(path)
        except NodeNotFound:
            return []

    found = []
    for kind in map(DeviceClass, await names(f"/local/domain/{backend_domid}/backend")):
        root = backend_root(backend_domid, kind)
        for domid in await names(root):
            for devid in await names(f"{root}/{domid}"):
                id = parse_backend(root, f"{root}/{domid}/{devid}", backend_domid, kind)
                if id is not None:
                    found.append(id)
    return found
