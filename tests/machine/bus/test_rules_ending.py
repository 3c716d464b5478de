"""Rules T55 to T58: detaching a device in use, the death of a domain, the error node, with both ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask, held_by_backend
from tests.doubles.hand_disk import HandDisk
from xenbusd import toolstack
from xenbusd.api import Backend, BackendDevice, OtherendError
from xenbusd.bus import backend_life
from xenbusd.bus.state import Side, State
from xenbusd.ids import DOM0
from xenbusd.ring.layout import REQ_PROD
from xenbusd.store.client import StoreClient
from xenbusd.store.transaction import Transaction
from xenbusd.store.wire import Op
from xenbusd.testing import Machine, Peer
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING
from xenbusd_vbd.backend import VbdBackend

# -- T55, T56 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["toolstack", "frontend"])
async def test_t55_a_disk_in_use_is_served_until_6(machine: Machine, tmp_path: Path, who: str) -> None:
    """T55: an older blkfront answers a detach with fe 5 and an error node, "Device in use", and goes on with its I/O
    until the last user has gone: the backend serves until fe 6, whoever began."""
    image = tmp_path / "disk.img"
    image.write_bytes(b"".join(sector.to_bytes(2, "little") * 256 for sector in range(64)))
    back = await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=51712))
    await machine.attach(peer.id, {"params": str(image), "mode": "w"})
    disk = await HandDisk.connect(peer)
    assert (await disk.read(8, 1))[:2] == b"\x08\0"
    if who == "toolstack":
        await machine.ask_to_close(peer.id)
        await peer.until(State.CLOSING)
        await peer.store.write(peer.id.error_path(Side.FRONTEND), "16 Device in use; refusing to close")
    await peer.write(State.CLOSING)
    await peer.until(State.CLOSING)
    await back.settle()
    assert (await disk.read(16, 1))[:2] == b"\x10\0"
    assert (await disk.read(24, 8))[:2] == b"\x18\0"
    assert await peer.read("state") == b"5"
    await peer.write(State.CLOSED)
    await peer.until(State.CLOSED)
    assert machine.holdings(GUEST).grants_mapped == 0
    disk.close()


async def test_t56_a_detach_is_an_eject_request(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """T56: Windows takes `online` 0 together with be 5 for an eject request: both come in one transaction, before any
    directory goes, and `online` is a number in base 2."""
    await machine.start(DOM0, EchoBackend)
    peer = Peer(await machine.start(GUEST), machine.id("echo"))
    await machine.attach(peer.id)
    assert await peer.read("online") == b"1"
    with await peer.connect(RING):
        asked: list[tuple[int, str, bytes, Transaction]] = []
        write = Transaction._ask

        def spy(self: Transaction, op: int, path: str, payload: bytes) -> asyncio.Future[Any]:
            if op in (Op.WRITE, Op.RM) and self._asker is machine.store:
                asked.append((op, path, payload.partition(b"\0")[2], self))
            return write(self, op, path, payload)

        monkeypatch.setattr(Transaction, "_ask", spy)
        monkeypatch.setattr(StoreClient, "write", None)  # nothing is written but in transactions
        detached = asyncio.create_task(machine.detach(peer.id))
        await peer.until(State.CLOSING)
        assert await peer.read("online") == b"0"
        await peer.write(State.CLOSED)
        async with asyncio.timeout(DEADLINE_S):
            await detached
    first = asked[0][3]
    assert sorted(change[1:3] for change in asked if change[3] is first) == [
        (f"{peer.otherend_path}/online", b"0"),
        (f"{peer.otherend_path}/state", b"5"),
    ]
    assert {op for op, _, _, tx in asked if tx is not first} == {Op.RM}


async def test_t56_after_1_comes_2_and_nothing_else(echo: Half) -> None:
    """T56: Windows accepts only be 2 after it wrote 1, and the backend never shows 3, 7 or 8 unasked (T40)."""
    for _ in range(2):
        with await echo.connect():
            await echo.peer.write(State.CLOSING)
            await echo.backend(State.CLOSING)
            await echo.peer.write(State.CLOSED)
            await echo.backend(State.CLOSED)
        await echo.peer.write(State.INITIALISING)
        await echo.backend(State.INIT_WAIT)
    once = ["InitWait", "Connected", "Closing", "Closed"]
    assert echo.backend_states() == ["Initialising", *once, *once, "InitWait"]


# -- T57, T58 ----------------------------------------------------------------------------------------------------------


async def test_t57_a_dead_domain_s_pages_are_let_go(machine: Machine) -> None:
    """T57: no state change comes from a domain that is destroyed; the backend unmaps and unbinds on `@releaseDomain`,
    or Xen could not free it."""
    await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    await machine.connected(id)
    ports = machine.holdings(DOM0).ports
    await guest.kill()
    await machine.until(id, backend=State.CLOSED)
    assert machine.holdings(GUEST) == (GUEST, 0, 0, 0, 0, 0)
    assert machine.holdings(DOM0).ports == ports - 1


async def test_t57_a_dying_domain_s_directory_may_still_stand(echo: Half) -> None:
    """T57: everything is unmapped although the dead domain's directory still says Connected, and be says 4."""
    with await echo.connect():
        for node in await echo.machine.nodes(echo.id.frontend_path):
            await echo.machine.store.set_perms(node, ["n0", "b5"])  # the store drops what the dead domain owned
        await echo.machine.store.release(GUEST)
        await echo.machine.until(echo.id, backend=State.CLOSED, frontend=State.CONNECTED)
        holdings = echo.machine.holdings(GUEST)
        assert (holdings.grants_mapped, holdings.ports_bound) == (0, 0)


async def test_t58_an_error_is_left_where_tools_look(echo: Half) -> None:
    """T58: `/local/domain/<BE>/error/backend/<class>/<FE>/<id>/error` holds "<errno> <text>", the errno positive; the
    device closes; the next connection that succeeds removes it, with the directories that held it."""
    path = "/local/domain/0/error/backend/echo/5/0/error"
    assert echo.id.error_path(Side.BACKEND) == path
    with await echo.connect() as ring:
        ring.words[REQ_PROD] = 4_000_000
        ring.notify()
        await echo.backend(State.CLOSING)
        await echo.peer.write(State.CLOSED)
        await echo.backend(State.CLOSED)
    errno, _, text = (await echo.machine.store.read(path)).partition(b" ")
    assert errno == b"22"
    assert text.startswith(b"the frontend's req_prod 4000000 ")
    assert (await toolstack.observe(echo.machine.store, echo.id)).backend_error == f"22 {text.decode()}"
    await echo.peer.write(State.INITIALISING)
    with await echo.connect() as ring:
        assert await ask(ring, b"well") == [b"well"]
        await echo.back.settle()
        assert await echo.machine.nodes("/local/domain/0/error") == {"/local/domain/0/error": b""}


async def test_t58_a_frontend_s_error_stands_in_its_own_domain(machine: Machine) -> None:
    """T58: a frontend writes its error below its own domain, where the toolstack reads it."""

    class Broken(Backend, device_class="echo"):
        async def run(self, dev: BackendDevice) -> None:
            await dev.advertise(feature_upper="perhaps")

    await machine.start(DOM0, Broken)
    await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    await machine.attach(id)
    path = "/local/domain/5/error/device/echo/0/error"
    watch = await machine.store.watch(path)
    async with asyncio.timeout(DEADLINE_S):
        while (error := await machine.read(path)) is None:
            await watch.wait()
    assert error == b"22 /local/domain/0/backend/echo/5/0/feature-upper holds 'perhaps', which is no boolean"


async def test_t58_a_long_error_is_cut(machine: Machine) -> None:
    """T58: an error that would fill the store is cut; the log has all of it."""

    class Verbose(Backend, device_class="verbose"):
        async def run(self, dev: BackendDevice) -> None:
            raise OtherendError(f"{dev.id}: " + "x" * 100_000)

    await machine.start(DOM0, Verbose)
    peer = Peer(await machine.start(GUEST), machine.id("verbose"))
    await machine.attach(peer.id)
    await peer.until(State.CLOSED)
    error = await machine.store.read(peer.id.error_path(Side.BACKEND))
    assert error.startswith(b"22 verbose/5/0: xxx")
    assert len(error) == 512


# -- deadlines ---------------------------------------------------------------------------------------------------------


async def test_t55_a_fault_of_the_frontend_s_is_waited_for_only_so_long(
    echo: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T55: the wait for fe 6 is unlimited for honest frontends only: after a fault the backend closes in the end."""
    monkeypatch.setattr(backend_life, "CLOSE_S", 0.01)
    with await echo.connect() as ring:
        ring.words[REQ_PROD] = 4_000_000
        ring.notify()
        await echo.machine.until(echo.id, backend=State.CLOSED, frontend=State.CONNECTED)
        assert await held_by_backend(echo) == 0
