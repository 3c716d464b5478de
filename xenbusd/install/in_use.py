"""Devices that guests use and that xenbusd serves, as the store has them."""

from __future__ import annotations

import asyncio

from xenbusd import registry, toolstack
from xenbusd.bus.state import Side, State
from xenbusd.errors import StoreLost, UsageError
from xenbusd.host.real import store_endpoint
from xenbusd.ids import Domid
from xenbusd.store.client import StoreClient

STORE_S = 20.0
"""How long the store may take to list all devices. A store that does not answer counts as one without devices."""


def check_unused(mode: str | None, consequence: str) -> None:
    """Refuse to go on while a guest uses a device of ours.

    Args:
        mode: a key of `MODES`, which decides whose a device is; None: every device of our classes is ours.
        consequence: the reason, which becomes the middle of the message.

    Raises:
        UsageError: naming the devices.
        DriverError: a driver of ours cannot be loaded.
    Blocks: while it asks the store.
    """
    if used := asyncio.run(_used(mode)):
        raise UsageError(
            f"guests use {', '.join(used)}: {consequence}; shut the guests down, or detach the devices "
            "(xl block-detach, xenbusctl detach)"
        )


async def _used(mode: str | None) -> list[str]:
    """Our devices that are not closed, whether a daemon serves them or is just starting."""
    claims = registry.Claims.of(registry.find(Side.BACKEND, None), shared=mode == "arbiter")
    found = []
    try:
        async with asyncio.timeout(STORE_S), StoreClient(store_endpoint()) as store:
            for id in await toolstack.devices(store, Domid(int(await store.read("domid")))):
                pair = await toolstack.observe(store, id)
                in_use = pair.backend not in (State.UNKNOWN, State.CLOSED)
                if in_use and claims.is_ours(id.device_class, pair.script):
                    found.append(str(id))
    except (StoreLost, TimeoutError):
        pass
    return found
