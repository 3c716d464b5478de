"""Making a device pair, as libxl does.

Source: tools/libs/light/libxl_device.c (libxl__device_generic_add).
Decision: D5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

from xenbusd.bus.paths import DeviceId
from xenbusd.errors import NodeNotFound, UsageError
from xenbusd.store.client import StoreClient
from xenbusd.store.transaction import Transaction


async def attach(store: StoreClient, id: DeviceId, back: Mapping[str, str], front: Mapping[str, str]) -> None:
    """Make both directories in one transaction, with libxl's permissions (T10).

    Each end owns its own directory and may read the other. The frontend's domain may be dom0 itself,
    as for a boot loader that reads a guest's disk (T71).

    Args:
        store: a session of dom0, or of another domain that may write there.
        id: the device to make.
        back: more keys of the backend's directory, such as `params`.
        front: more keys of the frontend's directory.

    Raises:
        UsageError: there is such a device already, or no such domain.
    """
    if not await store.is_domain_introduced(id.frontend_domid) and id.frontend_domid != 0:
        raise UsageError(f"there is no domain {id.frontend_domid}: start it first (`xl list` shows those that run)")
    n, b = id.frontend_domid, id.backend_domid
    directories = (
        (
            id.frontend_path,
            [f"n{n}", f"r{b}"],
            {"backend": id.backend_path, "backend-id": str(b), "state": "1", **front},
        ),
        (
            id.backend_path,
            [f"n{b}", f"r{n}"],
            {"frontend": id.frontend_path, "frontend-id": str(n), "online": "1", "state": "1", **back},
        ),
    )

    async def body(tx: Transaction) -> None:
        for path, _, _ in directories:
            try:
                await tx.read(path)
            except NodeNotFound:
                continue
            raise UsageError(f"there is a device {id} already ({path}); detach it first")
        writes: list[Awaitable[None]] = []
        for path, perms, keys in directories:
            writes += [tx.mkdir(path), tx.set_perms(path, perms)]  # nodes made below inherit these permissions
            writes += [tx.write(f"{path}/{key}", value) for key, value in keys.items()]
        await asyncio.gather(*writes)

    await store.transaction(body)
