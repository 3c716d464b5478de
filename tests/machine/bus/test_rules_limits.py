"""Rules T10, T11 and T13: who owns a node, whom a path names, and the limits of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask
from xenbusd.bus.paths import backend_root, frontend_root
from xenbusd.bus.state import Side
from xenbusd.errors import AccessDenied, QuotaExceeded, StoreError
from xenbusd.ids import DOM0, Domid
from xenbusd.store.client import StoreClient
from xenbusd.store.watch import Watch
from xenbusd.store.wire import ABSOLUTE_PATH_MAX, PAYLOAD_MAX, InvalidPath, InvalidPayload, Op
from xenbusd.testing import Machine
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend

# -- T10, T11 ----------------------------------------------------------------------------------------------------------


async def test_t10_permissions_are_libxl_s_and_are_inherited(machine: Machine) -> None:
    """T10: each end owns its directory and may read the other; keys written later inherit that with no SET_PERMS."""
    await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    for path, perms in ((id.backend_path, ["n0", "r5"]), (id.frontend_path, ["n5", "r0"])):
        nodes = await machine.nodes(path)
        assert len(nodes) > 4
        for node in nodes:
            assert await machine.store.get_perms(node) == perms, node
    assert await guest.store.read(f"{id.backend_path}/feature-upper") == b"1"
    for refused in (
        guest.store.write(f"{id.backend_path}/state", "6"),
        guest.store.write(f"{id.backend_path}/new", "1"),
        guest.store.rm(id.backend_path),
    ):
        with pytest.raises(AccessDenied):
            await refused


async def test_t10_an_unprivileged_creator_becomes_the_owner(machine: Machine) -> None:
    """T10: a node that a domain makes in another's writable directory belongs to the domain that made it."""
    guest = await machine.start(GUEST)
    await machine.store.mkdir("/local/domain/0/shared")
    await machine.store.set_perms("/local/domain/0/shared", ["n0", "b5"])
    await guest.store.write("/local/domain/0/shared/mine", "1")
    assert await machine.store.get_perms("/local/domain/0/shared/mine") == ["n5", "b5"]


async def test_t11_the_frontend_cannot_say_who_it_is(echo: Half) -> None:
    """T11: a guest may rewrite all of its directory; the backend goes by its own path and directory alone."""
    victim = await echo.machine.start(Domid(6))
    await echo.peer.write(
        None,
        backend="/local/domain/0/backend/echo/6/0",
        backend_id=6,
        frontend="/local/domain/6/device/echo/0",
        frontend_id=6,
    )
    with await echo.connect() as ring:
        assert await ask(ring, b"still 5") == [b"still 5"]
        assert echo.dev.otherend.domid == GUEST
        assert echo.machine.holdings(GUEST).grants_mapped == 1
        assert echo.machine.holdings(victim.domid).grants_mapped == 0


@pytest.mark.parametrize(
    ("frontend", "frontend_id"),
    [
        ("/local/domain/6/device/echo/0", "5"),
        ("/local/domain/6/device/echo/0", "6"),
        ("/local/domain/55/device/echo/0", "5"),
        ("/local/domain/5", "5"),
        ("device/echo/0", "5"),
        ("", "5"),
        ("/local/domain/5/device/echo/0", "05"),
        ("/local/domain/5/device/echo/0", "banana"),
        ("/local/domain/32752/device/echo/0", "32752"),
    ],
)
async def test_t11_a_frontend_out_of_its_place_is_refused(
    machine: Machine, logged: list[dict[str, Any]], frontend: str, frontend_id: str
) -> None:
    """T11: `frontend` must lie below the domain that `frontend-id` and the backend's path agree on."""
    back = await machine.start(DOM0, EchoBackend)
    id = machine.id("echo")
    await machine.write(id.backend_path, frontend=frontend, frontend_id=frontend_id, online="1", state="1")
    await back.settle()
    assert {line["event"] for line in logged} == {"otherend.misplaced"}
    assert await machine.read(f"{id.backend_path}/state") == b"1"


async def test_t11_each_ring_key_is_read_once(echo: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """T11: what is checked and what is used are one copy: no ring key is read a second time."""
    read: list[str] = []
    read_store = echo.back.store.read

    def spy(path: str) -> asyncio.Future[bytes]:
        read.append(path)
        return read_store(path)

    monkeypatch.setattr(echo.back.store, "read", spy)
    with await echo.connect() as ring:
        await echo.peer.write(None, ring_ref=4_000_000, event_channel=0)
        assert await ask(ring, b"the old ones") == [b"the old ones"]
    for key in ("ring-ref", "event-channel"):
        assert read.count(f"{echo.peer.path}/{key}") == 1


# -- T13 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda store: store.write("/local/domain/0/x", bytes(PAYLOAD_MAX)), InvalidPayload),
        (lambda store: store.read("/" + "x" * ABSOLUTE_PATH_MAX), InvalidPath),
        (lambda store: store.read("x" * 2049), InvalidPath),
        (lambda store: store.read("/a b"), InvalidPath),
        (lambda store: store.read("/a/"), InvalidPath),
        (lambda store: store.read("/a//b"), InvalidPath),
        (lambda store: store.read("/é"), InvalidPath),
    ],
    ids=["payload", "absolute", "relative", "space", "slash", "slashes", "letter"],
)
async def test_t13_what_breaks_a_limit_is_never_sent(
    machine: Machine, act: Callable[[StoreClient], Awaitable[Any]], error: type[ValueError]
) -> None:
    """T13: the store closes the connection on an oversize payload, so that nothing that breaks a limit is sent."""
    before = machine.store.requests
    with pytest.raises(error):
        async with asyncio.timeout(DEADLINE_S):
            await act(machine.store)
    assert (machine.store.requests, machine.store.reconnects) == (before, 0)


async def test_t13_one_watch_for_a_class_and_one_for_each_other_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13: a guest has 128 watches; a class costs it one, and each device one, on its other end's state."""
    watched: list[str] = []
    watch = StoreClient.watch

    async def spy(self: StoreClient, path: str, **how: Any) -> Watch:
        if self not in (machine.store,):
            watched.append(path)
        return await watch(self, path, **how)

    monkeypatch.setattr(StoreClient, "watch", spy)
    await machine.start(GUEST, EchoFrontend)
    await machine.start(DOM0, EchoBackend)
    ids = [machine.id("echo", devid=devid) for devid in range(8)]
    for id in ids:
        await machine.attach(id)
    for id in ids:
        await machine.connected(id)
    name = ids[0].device_class
    expected = [frontend_root(GUEST, name), backend_root(DOM0, name), "@releaseDomain", "@releaseDomain"]
    for id in ids:
        expected += [f"{id.backend_path}/state", f"{id.frontend_path}/state"]
    assert sorted(watched) == sorted(expected)


async def test_t13_a_guest_s_quotas(machine: Machine) -> None:
    """T13: the embedded store allows a guest what xenstored does, and its limits do not touch domain 0."""
    guest = (await machine.start(GUEST)).store
    home, mine = "/local/domain/5/data", "/local/domain/0/data"

    async def refused(request: Awaitable[Any]) -> None:
        with pytest.raises(StoreError) as caught:
            await request
        assert isinstance(caught.value, QuotaExceeded), caught.value

    for _ in range(128):
        await guest.watch(home)
    await refused(guest.watch(home))
    await guest.write(f"{home}/big", bytes(1900))
    await refused(guest.write(f"{home}/big", bytes(2048)))
    for _ in range(10):
        await guest.ask(Op.TRANSACTION_START, "", b"\0")
    await refused(guest.ask(Op.TRANSACTION_START, "", b"\0"))
    nodes = [guest.mkdir(f"{home}/{number // 100}/{number}") for number in range(1000)]
    answers = await asyncio.gather(*nodes, return_exceptions=True)
    assert {type(answer) for answer in answers} == {type(None), QuotaExceeded}
    for _ in range(140):
        await machine.store.watch(mine)
    await machine.store.write(f"{mine}/big", bytes(4000))


async def test_t13_a_guest_without_watches_left_does_not_spin(machine: Machine, logged: list[dict[str, Any]]) -> None:
    """T13: a device for which no watch is left is logged once, and tried again when something has happened."""
    await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    watches = [await guest.store.watch("/local/domain/5/data") for _ in range(126)]
    id = machine.id("echo")
    await machine.attach(id)
    await guest.settle()
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["device.failed"]
    error = await machine.read(id.error_path(Side.FRONTEND)) or b"nothing"
    assert error.startswith(b"7 store: WATCH /local/domain/0/backend/echo/5/0/state")
    await watches.pop().unwatch()
    await guest.store.write(f"{id.frontend_path}/nudge", "1")
    await machine.connected(id)
    await guest.settle()
    assert await machine.read(id.error_path(Side.FRONTEND)) is None
