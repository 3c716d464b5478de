"""Fixtures for tests of the hosts: a running simulated host, and two host interfaces on one machine of either kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.two_hosts import Two, ask
from xenbusd.host.real import RealHost
from xenbusd.host.sim.client import SimHost
from xenbusd.host.sim.thread import broker_in_thread
from xenbusd.ids import Domid
from xenbusd.store.wire import Op, pack


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A running simulated host's socket."""
    where = str(tmp_path / "host")
    with broker_in_thread(where):
        yield where


@pytest.fixture(params=["sim", "real"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Two]:
    """Both processes' host interfaces, on each kind of host that is available."""
    if request.param == "real":
        if not os.path.exists("/dev/xen/gntdev"):
            pytest.skip("not a Xen domain: /dev/xen/gntdev is missing")
        front, back = RealHost(), RealHost()
        store = front.store.open()
        domid = Domid(int(ask(store, pack(Op.READ, 0, 0, b"domid\0"))))
        os.close(store) if isinstance(store, int) else store.close()
        yield Two(front, back, domid, domid)
        front.close()
        back.close()
        return
    path = str(tmp_path / "host")
    with broker_in_thread(path):
        sim_front, sim_back = SimHost(path, Domid(3)), SimHost(path)
        yield Two(sim_front, sim_back, Domid(3), Domid(0))
        sim_front.close()
        sim_back.close()
