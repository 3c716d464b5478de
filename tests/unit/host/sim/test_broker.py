"""The broker on the loop of its caller; tests/machine/host/test_sim_*.py test its work for clients."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from xenbusd.host.sim.broker import SimBroker
from xenbusd.host.sim.client import SimHost, census
from xenbusd.ids import Domid


async def test_broker_runs_on_either_loop(tmp_path: Path) -> None:
    """A domain comes, connects to the store, and goes, while this very loop serves it; asyncio's own or uvloop."""
    broker = SimBroker(str(tmp_path / "host"))
    await broker.start()

    def live() -> tuple[int, bytes]:
        host = SimHost(broker.path, Domid(3))
        store = host.store.open()
        assert not isinstance(store, int)
        store.close()
        share = host.grants.share(Domid(0), 1)
        pages = census(broker.path)[Domid(3)].grants_shared
        seen = bytes(share.view[0:2])
        host.close()
        return pages, seen

    assert await asyncio.to_thread(live) == (1, b"\0\0")
    assert list(await asyncio.to_thread(census, broker.path)) == [0]
    await broker.close()


async def test_close_removes_the_sockets_and_may_come_twice(tmp_path: Path) -> None:
    """Nothing stays at either path; a broker that never started can be closed, too."""
    broker = SimBroker(str(tmp_path / "host"))
    await broker.close()
    await broker.start()
    assert sorted(os.listdir(tmp_path)) == ["host", "host.store"]
    assert broker.store_path == str(tmp_path / "host.store")
    await broker.close()
    await broker.close()
    assert os.listdir(tmp_path) == []
