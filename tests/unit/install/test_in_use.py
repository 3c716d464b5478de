"""xenbusd.install.in_use: while guests use our devices, nothing is removed and no mode changes."""

from __future__ import annotations

import asyncio

import pytest

from tests.doubles.folder_machine import EXCLUSIVE, RECORD, SERVE_FILES, FolderMachine
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.testing.processes import ProcessMachine


async def devices(host: ProcessMachine, **states: int) -> None:
    """Put devices of guest 3 into the store, as xl makes them, with these states; a name is class_devid_script."""
    async with StoreClient(unix_endpoint(host.store)) as store:
        for name, state in states.items():
            kind, devid, script = name.split("_", 2)
            path = f"/local/domain/0/backend/{kind}/3/{devid}"
            await store.write(f"{path}/state", str(state))
            await store.write(f"{path}/script", f"/etc/xen/scripts/{script.replace('_', '-')}")


@pytest.mark.parametrize(
    ("mode", "used"),
    [("arbiter", "vbd/3/51712, vtpm/3/0"), ("exclusive", "vbd/3/51712, vbd/3/51728, vtpm/3/0")],
)
def test_uninstall_under_running_guests(machine: FolderMachine, store: ProcessMachine, mode: str, used: str) -> None:
    """While a guest uses a device of ours, `uninstall` refuses, unless --force is given. The mode decides which devices
    are ours; a closed device, and one of a class that we do not serve, is not in use."""
    machine.install("--mode", mode)
    before = machine.files()
    states = {"vbd_51712_block_xenbusd": 4, "vbd_51728_block": 4, "vbd_51744_block_xenbusd": 6, "vif_0_vif_bridge": 4}
    asyncio.run(devices(store, **states, vtpm_0_none=2))
    (line,) = machine.xenbusd("uninstall", status=2)
    assert f"guests use {used}: without xenbusd they would wait for ever (--force: let them)" in line
    assert machine.files() == before
    machine.xenbusd("uninstall", "--force")
    assert machine.files() == set()


def test_change_of_mode_under_running_guests(machine: FolderMachine, store: ProcessMachine) -> None:
    """Linux's driver, loaded at the wrong moment, would take a guest's disk from us: refused while a guest has one."""
    machine.install("--mode", "exclusive")
    asyncio.run(devices(store, vbd_51712_block_xenbusd=4))
    (line,) = machine.install("--mode", "arbiter", status=2)
    assert "guests use vbd/3/51712: the mode cannot be changed; shut the guests down" in line
    assert machine.files() == SERVE_FILES | {EXCLUSIVE, RECORD}
