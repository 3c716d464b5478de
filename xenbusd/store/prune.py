"""Removing a directory together with the parents that it leaves empty, as libxl does (libxl__xs_path_cleanup)."""

from __future__ import annotations

from contextlib import suppress

from xenbusd.errors import AccessDenied, NodeNotFound
from xenbusd.store.transaction import Transaction


async def prune(tx: Transaction, path: str, keep: str) -> None:
    """Remove `path` with all below it, then each parent that holds no child and no value any more.

    Args:
        tx: the transaction to do it in.
        path: absolute; nothing happens if it is not there.
        keep: an ancestor that stays, even if it is empty; nothing above it is touched either.
    """
    with suppress(NodeNotFound):
        await tx.rm(path)
    parent = path.rpartition("/")[0]
    with suppress(NodeNotFound, AccessDenied):  # an unprivileged domain cannot remove the parents: they stay
        while parent.startswith(keep + "/") and not await tx.directory(parent) and not await tx.read(parent):
            await tx.rm(parent)
            parent = parent.rpartition("/")[0]
