"""The lives of the domains at the other ends."""

from __future__ import annotations

from collections.abc import Sequence

from xenbusd.bus.scan import Scan
from xenbusd.errors import AccessDenied
from xenbusd.ids import Domid
from xenbusd.store.client import StoreClient

RELEASE = "@releaseDomain"
"""The special watch that fires when some domain, unnamed, was shut down or destroyed."""


async def follow_domains(store: StoreClient, scans: Sequence[Scan]) -> None:
    """On each `@releaseDomain`, which names nobody and may mean only a shutdown, ask after every domain (T14, T57).

    Ends at once where the store does not tell us: there the loss of the other end's directory is the only sign.
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
                alive = True  # unprivileged: we cannot ask; the looks that follow will tell
            for scan in scans:
                (scan.wake_domain if alive else scan.domain_gone)(domid)
