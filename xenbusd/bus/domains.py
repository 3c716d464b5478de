"""Follows the lives of other domains: their devices learn when they may have been shut down, and when they are gone."""

from __future__ import annotations

from collections.abc import Sequence

from xenbusd.bus.scan import Scan
from xenbusd.errors import AccessDenied
from xenbusd.ids import Domid
from xenbusd.store.client import StoreClient

RELEASE = "@releaseDomain"
"""The special watch that fires when a domain was shut down or destroyed; it does not say which."""


async def follow_domains(store: StoreClient, scans: Sequence[Scan]) -> None:
    """On each `@releaseDomain`, which names no domain and may mean only a shutdown, check every domain at the other end
    of a scan's device (T14, T57). Runs until it is cancelled.

    Returns at once where the store refuses the watch: there the loss of the other end's directory is the only sign.
    """
    try:
        watch = await store.watch(RELEASE)
    except AccessDenied:
        return
    while True:
        await watch.wait()
        domids: set[Domid] = set()
        for scan in scans:
            domids |= scan.other_domains()
        for domid in domids:
            try:
                alive = await store.is_domain_introduced(domid)
            except AccessDenied:
                alive = True  # unprivileged: we may not ask; its devices observe the store and will see
            for scan in scans:
                (scan.wake_domain if alive else scan.domain_gone)(domid)
