"""An image that a real backend serves to a frontend driven by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.disk_pair import DEVID
from tests.doubles.echo import GUEST
from tests.doubles.hand_disk import (
    SECTOR,
    X86_32,
    X86_64,
)
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side, State
from xenbusd.ids import DOM0
from xenbusd.testing import Machine, Peer
from xenbusd_vbd.backend import VbdBackend

SECTORS = 2048
SIZE = SECTORS * SECTOR

LAYOUTS = pytest.mark.parametrize("layout", [X86_64, X86_32], ids=lambda layout: layout.name)
GRANTS = pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "copied"])


def contents(size: int = SIZE) -> bytes:
    """The contents of a disk: incompressible, and the same each time."""
    return random.Random(0x5EED).randbytes(size)


async def attached(machine: Machine, params: Path | str, mode: str = "w", **keys: str) -> Peer:
    """Start a backend, a guest, and a disk whose frontend is driven by hand."""
    await machine.start(DOM0, VbdBackend)
    peer = Peer(await machine.start(GUEST), machine.id("vbd", devid=DEVID))
    back = {key.replace("_", "-"): value for key, value in keys.items()}
    await machine.attach(peer.id, {"params": str(params), "mode": mode, **back})
    return peer


async def error_node(machine: Machine, id: DeviceId) -> bytes:
    """The backend's error node."""
    return await machine.read(id.error_path(Side.BACKEND)) or b"nothing"


async def offer(peer: Peer) -> Any:
    """Once the backend is at InitWait, offer it a ring."""
    await peer.until(State.INIT_WAIT)
    return await peer.offer(X86_64.ring, protocol=X86_64.name)
