"""Nodes that libxl or an end of a device writes, for the tests."""

from __future__ import annotations

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side
from xenbusd.testing import Machine


async def mark_as_libxl_s(machine: Machine, id: DeviceId) -> None:
    """Note the device where libxl notes those that it manages."""
    await machine.write(id.libxl_path, backend=id.backend_path, frontend=id.frontend_path)


async def error_node(machine: Machine, id: DeviceId, side: Side = Side.BACKEND) -> bytes:
    """An end's error node."""
    return await machine.read(id.error_path(side)) or b"nothing"
