"""The echo pair at each stage of its life: its frontend's domain is destroyed, or the device is taken away by force."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.doubles.echo import GUEST, Half, ask
from tests.doubles.echo_pair import beside_an_honest_pair
from xenbusd.bus.state import State
from xenbusd.testing import Machine
from xenbusd_echo.protocol import RING, Line

# -- the frontend dies -------------------------------------------------------------------------------------------------


async def at_initialising(echo: Half) -> None:
    """The backend waits for an offer."""
    await echo.backend(State.INIT_WAIT)


async def at_offered(echo: Half) -> None:
    """The ring is offered; the backend is just taking it."""
    await echo.backend(State.INIT_WAIT)
    await echo.peer.offer(RING)


async def at_accepted(echo: Half) -> None:
    """The backend is Connected, the frontend not yet."""
    await at_offered(echo)
    await echo.backend(State.CONNECTED)


async def at_connected(echo: Half) -> None:
    """Connected and idle."""
    await echo.connect()
    await echo.back.settle()


async def at_busy(echo: Half) -> None:
    """Connected, with a ring full of requests whose answers will not be taken."""
    ring = await echo.connect()
    ring.send(*(Line(n, b"never read").pack() for n in range(32)))


async def at_closing(echo: Half) -> None:
    """The frontend closes; the backend has followed."""
    await at_connected(echo)
    await echo.peer.write(State.CLOSING)
    await echo.backend(State.CLOSING)


async def at_asked_to_close(echo: Half) -> None:
    """The toolstack closes; the backend waits for the frontend."""
    await at_connected(echo)
    await echo.machine.ask_to_close(echo.id)
    await echo.backend(State.CLOSING)
    await echo.back.settle()


async def at_closed(echo: Half) -> None:
    """Both have closed."""
    await at_closing(echo)
    await echo.peer.write(State.CLOSED)
    await echo.backend(State.CLOSED)


async def at_beginning_again(echo: Half) -> None:
    """Closed once, and on the way to the second connection."""
    await at_closed(echo)
    await echo.peer.write(State.INITIALISING)


STAGES = [
    at_initialising,
    at_offered,
    at_accepted,
    at_connected,
    at_busy,
    at_closing,
    at_asked_to_close,
    at_closed,
    at_beginning_again,
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
async def test_the_frontend_dies(
    machine: Machine, logged: list[dict[str, Any]], stage: Callable[[Half], Awaitable[None]]
) -> None:
    """In whatever state the frontend's domain is destroyed, the backend gives back all of its pages and ports."""
    async with beside_an_honest_pair(machine, logged) as echo:
        await stage(echo)
        await echo.guest.kill()
        await machine.until(echo.id, backend=State.CLOSED, frontend=State.UNKNOWN)
        assert machine.holdings(GUEST) == (GUEST, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
async def test_the_device_is_torn_away(
    machine: Machine, logged: list[dict[str, Any]], stage: Callable[[Half], Awaitable[None]]
) -> None:
    """In whatever state a pair is, a forced detach removes it at once, and the domain can be given a new one."""
    async with beside_an_honest_pair(machine, logged) as echo:
        await stage(echo)
        await machine.detach(echo.id, force=True)
        assert machine.holdings(GUEST).grants_mapped == 0
        await machine.attach(echo.id)
        with await echo.connect() as ring:
            assert await ask(ring, b"a new one") == [b"a new one"]
