"""The error node: `error/<nodename>/error` = "<errno> <text>", where Xen's tools look for an end's last error (T58)."""

from __future__ import annotations

import errno
from contextlib import suppress

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side
from xenbusd.errors import HypercallError, OtherendGone, OtherendTimeout, ResourceError, StoreError
from xenbusd.store.client import StoreClient
from xenbusd.store.prune import prune
from xenbusd.store.transaction import Transaction

ERROR_TEXT_MAX = 512
"""The longest error node, in bytes: its text may quote the other end, and then only a part of what that end wrote."""


async def report(store: StoreClient, id: DeviceId, side: Side, error: Exception) -> bool:
    """Write an end's error node.

    Returns:
        Whether the node is there now. A device that has gone leaves no node behind (T7).
    """
    text = f"{errno_of(error)} {error}".encode("utf-8", "backslashreplace")[:ERROR_TEXT_MAX]

    async def body(tx: Transaction) -> None:
        await tx.read(id.path(side) + "/state")
        await tx.write(id.error_path(side), text)

    try:
        await store.transaction(body)
    except StoreError:  # the device has gone, or our part of the store is full; the log has the error, too
        return False
    return True


async def clear_error(store: StoreClient, id: DeviceId, side: Side) -> None:
    """Remove the error node that `report` wrote, and the directories that held only this node."""
    path = id.error_path(side)
    with suppress(StoreError):
        await store.read(path)  # most devices never had one: spare the store a transaction
        home = path.partition("/error/")[0]
        await store.transaction(lambda tx: prune(tx, path.removesuffix("/error"), home + "/error"))


def errno_of(error: Exception) -> int:
    """The positive errno that stands for an error in an error node."""
    if isinstance(error, ResourceError | HypercallError | StoreError):
        return error.errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, OtherendTimeout):
        return errno.ETIMEDOUT
    if isinstance(error, OtherendGone):
        return errno.ENOENT
    return errno.EINVAL
