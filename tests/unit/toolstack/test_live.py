"""xenbusd.toolstack.live: keys that are changed while a device is in use."""

from __future__ import annotations

import pytest

from tests.doubles.pairs import BACK, ID, set_states
from xenbusd import toolstack
from xenbusd.bus.state import Side, State
from xenbusd.errors import NodeNotFound, OtherendTimeout, UsageError
from xenbusd.store.client import StoreClient


async def test_keys_are_written_together(store: StoreClient) -> None:
    """Each one, in the backend's directory."""
    await toolstack.attach(store, ID, {}, {})
    await toolstack.write_live(store, ID, {"iops": "5", "bandwidth": "7"})
    assert await store.read(BACK + "/iops") == b"5"
    assert await store.read(BACK + "/bandwidth") == b"7"


async def test_a_removed_device_stays_removed(store: StoreClient) -> None:
    """T7: no directory is made for keys of a device that is not there."""
    with pytest.raises(UsageError, match="there is no device vbd/3/51712; `xenbusctl list` shows"):
        await toolstack.write_live(store, ID, {"iops": "5"})
    with pytest.raises(NodeNotFound):
        await store.read(BACK)


async def test_pause_waits_for_the_backends_word(store: StoreClient) -> None:
    """The key `pause` asks, the key `paused` answers."""
    await toolstack.attach(store, ID, {"paused": "1"}, {})
    await set_states(store, State.CONNECTED, State.CONNECTED)
    await toolstack.pause(store, ID, paused=True, deadline_s=5)
    assert await store.read(BACK + "/pause") == b"1"


async def test_pause_of_a_device_that_is_not_in_use(store: StoreClient) -> None:
    """Its backend's state is named."""
    await toolstack.attach(store, ID, {}, {})
    with pytest.raises(OtherendTimeout, match="vbd/3/51712 is not in use: its backend is at Initialising"):
        await toolstack.pause(store, ID, paused=True, deadline_s=5)


async def test_a_pause_that_is_late_repeats_the_backends_error(store: StoreClient) -> None:
    """The error node says why."""
    await toolstack.attach(store, ID, {}, {})
    await set_states(store, State.CONNECTED, State.CONNECTED)
    await store.write(ID.error_path(Side.BACKEND), "16 a flush does not end")
    with pytest.raises(OtherendTimeout, match="vbd/3/51712 has not paused: 16 a flush does not end"):
        await toolstack.pause(store, ID, paused=True, deadline_s=0.05)
