"""A store for the tests of the toolstack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles.pairs import BACK
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.store.server import StoreServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StoreServer]:
    """A store that knows domains 3 and 7."""
    store = StoreServer()
    for domid in (3, 7):
        store.introduce(domid)
        store.write(f"/local/domain/{domid}/name", f"guest{domid}")
    await store.listen(str(tmp_path / "store"))
    yield store
    await store.close()


@pytest.fixture
async def store(server: StoreServer, tmp_path: Path) -> AsyncIterator[StoreClient]:
    """A session of dom0."""
    assert not server.exists(BACK)
    async with StoreClient(unix_endpoint(str(tmp_path / "store"))) as client:
        yield client
