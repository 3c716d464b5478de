"""A client of a scripted store, through each kind of transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.doubles.scripted_store import Peer, ScriptedStore
from xenbusd.store import client as client_module
from xenbusd.store import transaction as transaction_module
from xenbusd.store.client import StoreClient


@pytest.fixture
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect again, and do transactions again, in the next moment."""
    monkeypatch.setattr(client_module, "RECONNECT_FIRST_S", 0.0001)
    monkeypatch.setattr(client_module, "RECONNECT_MAX_S", 0.001)
    monkeypatch.setattr(transaction_module, "BACKOFF_MAX_S", 0.0001)


@pytest.fixture(params=["socket", "device"])
def store(request: pytest.FixtureRequest, no_delays: None) -> Iterator[ScriptedStore]:
    """A scripted store."""
    del no_delays
    scripted = ScriptedStore(device=request.param == "device")
    yield scripted
    scripted.close()


@pytest.fixture
async def connected(store: ScriptedStore) -> AsyncIterator[tuple[StoreClient, Peer]]:
    """A client and the other end of its connection."""
    async with StoreClient(store.endpoint) as client:
        yield client, await store.accept()
