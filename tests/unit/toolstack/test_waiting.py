"""xenbusd.toolstack.waiting: waits until both ends are Connected, or one gives up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.doubles.pairs import ID, set_states
from xenbusd import toolstack
from xenbusd.bus.state import Side, State
from xenbusd.errors import OtherendTimeout
from xenbusd.store.client import StoreClient
from xenbusd.toolstack import waiting


async def test_waiting_ends_when_both_are_connected(store: StoreClient) -> None:
    """Each change on the way is reported."""
    await toolstack.attach(store, ID, {}, {})
    reported: list[str] = []
    steps = iter([(State.INIT_WAIT, State.INITIALISED), (State.CONNECTED, State.CONNECTED)])
    moves: list[asyncio.Task[None]] = []

    def progress(sentence: str) -> None:
        reported.append(sentence)
        if (states := next(steps, None)) is not None:
            moves.append(asyncio.create_task(set_states(store, *states)))

    await toolstack.wait_connected(store, ID, progress=progress)
    await asyncio.gather(*moves)
    assert "has not begun" in reported[0]
    assert any("is at InitWait" in sentence for sentence in reported[1:])


async def test_waiting_too_long_says_for_whom(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline's message names the end that has to move. The deadline passes once the pair has been observed."""
    await toolstack.attach(store, ID, {}, {})
    deadlines: list[asyncio.Timeout] = []

    def timeout(delay_s: float) -> asyncio.Timeout:
        deadlines.append(asyncio.timeout(delay_s))
        return deadlines[-1]

    monkeypatch.setattr(waiting, "asyncio", SimpleNamespace(timeout=timeout))
    with pytest.raises(
        OtherendTimeout, match=r"vbd/3/51712 is not Connected after 12\.5 s: the backend in domain 0 has not begun"
    ):
        await toolstack.wait_connected(store, ID, deadline_s=12.5, progress=lambda _: deadlines[0].reschedule(0))


async def test_waiting_ends_early_when_an_end_gives_up(store: StoreClient) -> None:
    """An error node together with Closed will not become Connected by waiting."""
    await toolstack.attach(store, ID, {}, {})
    await store.write(ID.error_path(Side.BACKEND), "2 cannot open /srv/a.img")
    await set_states(store, State.CLOSED, State.INITIALISING)
    with pytest.raises(OtherendTimeout, match="does not connect: the backend in domain 0 reports: 2 cannot open"):
        await toolstack.wait_connected(store, ID)
