"""A frontend that does nothing but notify is slowed down, and costs the others nothing (XSA-331, XSA-332)."""

from __future__ import annotations

import asyncio
from threading import Event, Thread

from xenbusd.bus.channel import PAUSE_MAX_S
from xenbusd.ids import DOM0, Domid
from xenbusd.testing import Machine, Peer
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_echo.protocol import RING

HONEST, HOSTILE = Domid(5), Domid(6)
DOUBLINGS = 9
"""Pauses, at most, until they have their full length."""


async def test_an_event_storm_is_throttled(machine: Machine) -> None:
    """While one frontend notifies without a pause, another is served; the storm wakes the backend a few times only."""
    dom0 = await machine.start(DOM0, EchoBackend)
    guest = await machine.start(HONEST, EchoFrontend)
    honest, hostile = machine.id("echo", HONEST), machine.id("echo", HOSTILE)
    await machine.attach(honest)
    await machine.connected(honest)
    process = await machine.start(HOSTILE)
    await machine.attach(hostile)
    peer = Peer(process, hostile)
    ring = await peer.connect(RING)

    over = Event()

    def storm() -> None:
        while not over.is_set():
            process.host.events.notify(ring.port)

    thread = Thread(target=storm)
    began = asyncio.get_running_loop().time()
    thread.start()
    try:
        reader, writer = await asyncio.open_unix_connection(guest.services.run_dir + "/echo-0.sock")
        for number in range(300):
            writer.write(b"line %d\n" % number)
            assert await reader.readline() == b"LINE %d\n" % number
        writer.close()
        await writer.wait_closed()
    finally:
        over.set()
        thread.join()
    lasted = asyncio.get_running_loop().time() - began
    throttled = dom0.device(hostile).counters["throttled"]
    assert 0 < throttled <= DOUBLINGS + lasted / PAUSE_MAX_S + 1
    assert "throttled" not in dom0.device(honest).counters
    ring.close()
