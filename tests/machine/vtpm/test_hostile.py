"""The TPM pair on a simulated machine, with one end that lies or is late."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.doubles import tpm
from tests.doubles.echo import GUEST
from tests.doubles.tpm import GET_RANDOM, STARTUP, HandPage, agent, ask, attach, command, result, serve, socket_of
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.ids import DOM0
from xenbusd.testing import Machine, Peer
from xenbusd_vtpm.protocol import HEAD, MESSAGE_MAX, STATE_AT, PageState

pytestmark = pytest.mark.skipif(tpm.lacking() is not None, reason=tpm.lacking() or "")

OK = "00000000"


@pytest.fixture
async def peer(machine: Machine) -> Peer:
    """A backend, and a frontend whose every step is the test's."""
    await serve(machine)
    peer = Peer(await machine.start(GUEST), machine.id("vtpm"))
    await attach(machine)
    return peer


@pytest.fixture
async def page(peer: Peer) -> AsyncIterator[HandPage]:
    """The frontend's page, connected, with the TPM started up."""
    page = await HandPage.connect(peer, before=STARTUP)  # it waits there before the backend has bound the port (T49)
    await page.until(PageState.FINISH)
    assert result(page.response()) == OK
    yield page
    page.close()


async def error_node(machine: Machine, id: DeviceId) -> bytes:
    """Return the backend's error node, once the backend has closed."""
    await machine.until(id, backend=(State.CLOSING, State.CLOSED))
    return await machine.read(id.error_path(Side.BACKEND)) or b"nothing"


async def test_extra_pages_carry_long_commands(page: HandPage) -> None:
    """T49: a command of 4096 bytes comes through one page and an extra one, and so does a long response."""
    own = (page.extra.grefs[0],)
    assert result(await page.ask(GET_RANDOM, extra=own)) == OK
    longest = command(0x17B, bytes(MESSAGE_MAX - 10))
    assert len(longest) == MESSAGE_MAX
    assert result(await page.ask(longest, extra=own)) == "00000095"  # TPM_RC_SIZE: the TPM's own word, not ours
    assert result(await page.ask(longest, extra=(*own, 4_000_000_000))) == "00000095"  # a page that is not needed


async def test_hostile_commands_are_refused(page: HandPage) -> None:
    """Bytes that are not a whole command never reach the TPM; locality 4 is refused; the device works on."""
    bad_size = "00000142"
    for message in (b"", b"\x80\x01", GET_RANDOM[:9], GET_RANDOM + b"\0", command(0x17B)[:6] + b"\xff" * 8):
        page.write(message)
        page.notify()
        await page.until(PageState.FINISH)
        assert result(page.response()) == bad_size
    assert result(await page.ask(GET_RANDOM, locality=4)) == "00000907"
    assert result(await page.ask(GET_RANDOM, locality=255)) == "00000907"
    assert result(await page.ask(GET_RANDOM, locality=3)) == OK
    assert result(await page.ask(GET_RANDOM)) == OK


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"length": 4089}, b"announces 4089 bytes, but has room for 4088"),
        ({"length": 0xFFFFFFFF}, b"announces 4294967295 bytes"),
        ({"state": 4}, b"state is 4, which does not exist"),
        ({"state": 0xFF}, b"state is 255, which does not exist"),
        ({"extra": (0xFFFFFFFF,), "length": 4090}, b"an extra page cannot be copied"),
        ({"extra": (0xFFFFFFFF,) * 255, "length": 4000}, b"an extra page cannot be copied"),
    ],
    ids=["too long", "much too long", "state 4", "state 255", "no grant", "many pages"],
)
async def test_hostile_pages_close_their_device(
    machine: Machine, peer: Peer, page: HandPage, lie: dict[str, Any], said: bytes
) -> None:
    """A page that no honest frontend writes closes its own device, with the reason in the error node."""
    page.write(GET_RANDOM, **lie)
    page.notify()
    assert said in await error_node(machine, peer.id)


async def test_garbage_in_every_byte(machine: Machine, peer: Peer) -> None:
    """Whatever a page holds, the daemon survives and serves the next device."""
    keeper = await attach(machine, tpm.OTHER_UUID, devid=1)
    honest = await HandPage.connect(Peer(peer.process, keeper), before=STARTUP)
    page = await HandPage.connect(peer)
    for byte in (0xFF, 0x80, 0x01):
        page.page[:] = bytes([byte]) * 4096
        page.notify()
    await machine.until(peer.id, backend=(State.CLOSING, State.CLOSED))
    page.close()
    assert result(await honest.ask(GET_RANDOM)) == OK
    honest.close()


async def test_cancel(machine: Machine, page: HandPage) -> None:
    """A cancel without a command is answered with IDLE; one of a command under way with that command's response."""
    page.page[STATE_AT] = PageState.CANCEL
    page.notify()
    assert await page.until(PageState.IDLE) is PageState.IDLE

    [pid] = [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _works_in(pid, machine)]
    os.kill(pid, signal.SIGSTOP)
    page.write(GET_RANDOM)
    page.notify()
    dev = machine.processes[1].device(page.peer.id)
    await machine.processes[1].until(lambda: dev.counters["requests"] == 2)
    page.page[STATE_AT] = PageState.CANCEL
    page.notify()
    await machine.processes[1].settle()
    os.kill(pid, signal.SIGCONT)
    await page.until(PageState.FINISH)
    assert result(page.response()) == OK
    assert result(await page.ask(GET_RANDOM)) == OK


def _works_in(pid: int, machine: Machine) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(str(machine.folder))
    except OSError:
        return False


async def test_closed_before_it_was_connected(machine: Machine) -> None:
    """If the toolstack closes the device while the TPM is being made, a frontend that waits for an answer in its page
    gets one, and can close."""
    await serve(machine)
    peer = Peer(await machine.start(GUEST), machine.id("vtpm"))
    await attach(machine)
    page = HandPage(peer)
    page.write(STARTUP)
    await peer.write(State.INITIALISED, **page.offer)
    await peer.until(State.INIT_WAIT)
    await machine.ask_to_close(peer.id)
    await page.until(PageState.FINISH)
    assert result(page.response()) == tpm.RC_FAILURE
    assert result(await page.ask(GET_RANDOM)) == tpm.RC_FAILURE
    await peer.write(State.CLOSED)
    await peer.until(State.CLOSED)
    page.close()


async def test_a_frontend_is_not_left_waiting(machine: Machine) -> None:
    """If the TPM cannot be used, a command that waits for it fails."""
    await serve(machine)
    peer = Peer(await machine.start(GUEST), machine.id("vtpm"))
    await machine.attach(peer.id, {"uuid": "none"})
    page = HandPage(peer)
    page.write(STARTUP)
    await peer.write(State.INITIALISED, **page.offer)
    await page.until(PageState.FINISH)
    assert result(page.response()) == tpm.RC_FAILURE
    assert b"is no uuid" in await error_node(machine, peer.id)
    page.close()


async def test_the_first_protocol_is_refused(machine: Machine, peer: Peer) -> None:
    """T49: a frontend without feature-protocol-v2 is refused, and the error node says so."""
    await peer.write(State.INITIALISED, ring_ref=8, event_channel=1)
    assert b"version 1 of the vtpm protocol only" in await error_node(machine, peer.id)


async def test_an_event_storm_is_slowed_down(machine: Machine, page: HandPage) -> None:
    """A frontend that sends spurious events is slowed down, and still served."""
    dev = machine.processes[1].device(page.peer.id)
    while "throttled" not in dev.counters:
        page.notify()
        await machine.processes[1].settle()
    assert result(await page.ask(GET_RANDOM)) == OK


# -- a hostile backend -------------------------------------------------------------------------------------------------


class HandBackend:
    """A backend whose every step is the test's."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.host = peer.process.host

    async def connect(self) -> None:
        """Do a backend's whole handshake."""
        peer = self.peer
        await peer.write(State.INIT_WAIT, feature_protocol_v2=1)
        await peer.until(State.INITIALISED)
        gref, port = int(await peer.read("ring-ref") or b""), int(await peer.read("event-channel") or b"")
        self.mapping = self.host.grants.map(peer.otherend_domid, [gref])  # type: ignore[list-item]  # an int is one
        self.page = self.mapping.view
        self.port = self.host.events.bind_interdomain(peer.otherend_domid, port)  # type: ignore[arg-type]
        await peer.write(State.CONNECTED, tpm_version="2.0")
        await peer.until(State.CONNECTED)

    def answer(self, response: bytes, *, length: int | None = None, state: int = PageState.FINISH) -> None:
        """Write a response, with any lie, and wake the frontend."""
        at = HEAD.size + 4 * self.page[HEAD.size - 1]
        self.page[at : at + len(response)] = response
        self.page[:4] = (len(response) if length is None else length).to_bytes(4, "little")
        self.page[STATE_AT] = state
        self.host.events.notify(self.port)

    def close(self) -> None:
        """Unmap the page and close the port."""
        self.host.events.unbind(self.port)
        self.mapping.unmap()


@pytest.mark.parametrize(
    "lie",
    [
        {"response": b"\x80\x01"},
        {"response": bytes(10)},
        {"response": b"", "length": 0xFFFFFFFF},
        {"response": b"\x80\x01\0\0\0\x0a\0\0\0\0", "length": 4000},
        {"response": b"", "state": 9},
    ],
    ids=["short", "zeros", "huge", "longer than it says", "state 9"],
)
async def test_a_hostile_backend(machine: Machine, lie: dict[str, Any]) -> None:
    """A response that no honest backend writes ends the connection; the program's command fails without any of it."""
    guest = await agent(machine)
    id = machine.id("vtpm")
    await machine.attach(id, {"handle": "0"}, {"handle": "0"})
    backend = HandBackend(Peer(await machine.start(DOM0), id, Side.BACKEND))
    await backend.connect()
    program = asyncio.create_task(ask(guest, id, GET_RANDOM))
    await guest.until(lambda: backend.page[STATE_AT] == PageState.SUBMIT)
    backend.answer(**lie)
    assert [result(response) for response in await program] == ["00000101"]
    backend.close()


async def test_programs_that_write_nonsense(machine: Machine) -> None:
    """A program that sends no valid command gets an answer that says so, and is disconnected; others are served on."""
    await serve(machine)
    guest = await agent(machine)
    id = await attach(machine)
    await machine.connected(id)
    reader, writer = await asyncio.open_unix_connection(str(socket_of(guest, id)))
    writer.write(b"\x80\x01\xff\xff\xff\xff\0\0\0\0")
    assert result(await reader.read()) == "00000142"
    writer.close()
    await writer.wait_closed()
    assert [result(response) for response in await ask(guest, id, STARTUP)] == [OK]
    await machine.detach(id)
