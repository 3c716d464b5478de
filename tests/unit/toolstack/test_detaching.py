"""xenbusd.toolstack.detaching: the nodes that detach writes, waits for and removes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.doubles.pairs import BACK, FRONT, ID, set_states, tree
from xenbusd import toolstack
from xenbusd.bus.state import Side, State
from xenbusd.errors import NodeNotFound, OtherendTimeout, UsageError
from xenbusd.ids import Devid
from xenbusd.store.client import StoreClient
from xenbusd.toolstack.pair import PairState


async def test_detach_of_a_closed_pair_removes_all_of_it(store: StoreClient) -> None:
    """Both directories, both error nodes, and every parent that only they had made."""
    before = await tree(store)
    await toolstack.attach(store, ID, {}, {})
    await store.write(ID.error_path(Side.BACKEND), "2 no")
    await store.write(ID.error_path(Side.FRONTEND), "2 no")
    await set_states(store, State.CLOSED, State.CLOSED)
    await toolstack.detach(store, ID)
    after = await tree(store)
    kept = {"/local/domain/0", "/local/domain/0/backend", "/local/domain/3/device"}
    assert after.keys() - before.keys() <= kept | {f"/local/domain/{domid}/error" for domid in (0, 3)}


async def test_detach_leaves_the_neighbour(store: StoreClient) -> None:
    """A second disk of the same guest stays as it is."""
    other = replace(ID, devid=Devid(51728))
    await toolstack.attach(store, ID, {}, {})
    await toolstack.attach(store, other, {"params": "x"}, {})
    kept = {**await tree(store, other.backend_path), **await tree(store, other.frontend_path)}
    await set_states(store, State.CLOSED, State.CLOSED)
    await toolstack.detach(store, ID)
    assert {**await tree(store, other.backend_path), **await tree(store, other.frontend_path)} == kept
    assert await toolstack.devices(store) == [other]


async def test_detach_asks_first_and_waits(store: StoreClient) -> None:
    """T52: online 0 and state 5 in one transaction; the directories go after the backend's 6."""
    await toolstack.attach(store, ID, {}, {})
    await set_states(store, State.CONNECTED, State.CONNECTED)
    detaching = asyncio.create_task(toolstack.detach(store, ID))
    async with toolstack.following(store, ID) as next_state:
        while (seen := await next_state()).backend is State.CONNECTED:
            assert seen.online
        assert (seen.backend, seen.online) == (State.CLOSING, False)
        await store.write(BACK + "/state", "6")
    await detaching
    with pytest.raises(NodeNotFound):
        await store.read(BACK)


async def test_detach_of_a_disk_in_use_says_so_and_leaves_it(store: StoreClient) -> None:
    """T52: without force the pair stays, asked to close."""
    await toolstack.attach(store, ID, {}, {})
    await set_states(store, State.CONNECTED, State.CONNECTED)
    with pytest.raises(
        OtherendTimeout, match=r"has not closed after 0\.05 s: the backend is at Closing, the frontend .* at Connected"
    ):
        await toolstack.detach(store, ID, deadline_s=0.05)
    assert await store.read(BACK + "/state") == b"5"
    assert await store.read(FRONT + "/state") == b"4"


async def test_detach_by_force_removes_in_any_case(store: StoreClient) -> None:
    """T52: the frontend's directory first; late or not, both are gone in the end."""
    await toolstack.attach(store, ID, {}, {})
    await set_states(store, State.CONNECTED, State.CONNECTED)
    with pytest.raises(OtherendTimeout, match="its directories were removed all the same"):
        await toolstack.detach(store, ID, force=True, deadline_s=0.05)
    assert await toolstack.observe(store, ID) == PairState(
        State.UNKNOWN, State.UNKNOWN, False, None, None, None, None, None
    )


async def test_detach_of_nothing_says_so(store: StoreClient) -> None:
    """With what shows the devices there are."""
    with pytest.raises(UsageError, match="there is no device vbd/3/51712; `xenbusctl list` shows"):
        await toolstack.detach(store, ID)
