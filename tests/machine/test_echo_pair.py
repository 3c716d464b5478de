"""The template pair, both ends on a simulated machine: it works, it ends in order, and nothing of it is left."""

from __future__ import annotations

from tests.machine.echo_client import ask, say
from xenbusd.bus.state import State
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import Machine, Peer
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING

GUEST = Domid(5)


async def test_happy_path(machine: Machine) -> None:
    """Attach, use, detach."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST, EchoFrontend)
    id = machine.id("echo")
    before = await machine.snapshot()
    await machine.attach(id)
    await machine.connected(id)
    assert await say(guest, id, b"one", b"two") == [b"ONE", b"TWO"]
    await machine.detach(id)
    await back.settle()
    await guest.settle()
    assert (await machine.snapshot()) == before
    assert back.states(id, "backend") == []
    print(back.story(id), guest.story(id))


async def test_hand(machine: Machine) -> None:
    """Attach, use, detach."""
    back = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(GUEST)
    id = machine.id("echo")
    await machine.attach(id)
    peer = Peer(guest, id)
    with await peer.connect(RING) as ring:
        assert await ask(ring, b"one", b"two") == [b"one", b"two"]
        await guest.kill()
        await machine.until(id, backend=State.CLOSED)
