"""Opening the host interface on a simulated host."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from xenbusd.errors import UsageError
from xenbusd.host.sim.client import SimHost, census
from xenbusd.host.sim.thread import broker_in_thread
from xenbusd.ids import Domid


def test_missing_broker_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Nobody at the path: the message says so, and what starts a host."""
    path = str(tmp_path / "host")
    with pytest.raises(UsageError, match=f"no simulated host answers at {path}.*xenbusd sim --socket {path}"):
        SimHost(path)
    with pytest.raises(UsageError, match="no simulated host"):
        census(path)


def test_over_long_path_is_named(tmp_path: Path) -> None:
    """A path that no socket can have is refused with the reason."""
    with pytest.raises(UsageError, match="too long"):
        SimHost(str(tmp_path / ("x" * 120)))


@pytest.mark.parametrize("domid", [-1, 0x7FF0, 70000])
def test_impossible_domid_is_refused_before_anything_is_opened(tmp_path: Path, domid: int) -> None:
    """The message names the range."""
    with pytest.raises(UsageError, match="from 0 to 32751"):
        SimHost(str(tmp_path / "host"), Domid(domid))


def test_other_service_is_not_taken_for_a_broker(tmp_path: Path) -> None:
    """A stream socket of somebody else's is refused at once."""
    path = str(tmp_path / "host")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(UsageError, match="no simulated host answers"):
            SimHost(path)


def test_a_census_leaves_no_descriptor() -> None:
    """Neither here nor, a moment later, in a broker that is a thread of this process: both ends are closed by then."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, broker_in_thread(f"{folder}/host"):
        before = os.listdir("/proc/self/fd")
        for _ in range(200):
            census(f"{folder}/host")
            assert os.listdir("/proc/self/fd") == before
