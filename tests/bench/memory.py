"""Memory: what an idle, connected device costs the backends' daemon."""

from __future__ import annotations

from collections.abc import Iterator

from handshake import attach_all, echo_devices
from machine import Machine, machine, rss_kib

from xenbusd.process.loop import run
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint

DEVICES, GUESTS = 1000, 10
RING_KIB = 4
FEW = 50
"""Attached before memory is first measured, so that modules and pools, which are allocated once, are not counted."""


def measure() -> Iterator[tuple[str, str, str, bool | None]]:
    """RSS growth for each of 1,000 devices, without its ring's page; and the same of a guest's agent."""
    with machine() as host:
        daemon = host.serve("--class", "echo", "--log-level", "warning")
        agents = [host.agent(domid, "--class", "echo", "--log-level", "warning") for domid in range(1, GUESTS + 1)]
        ids = echo_devices(DEVICES, GUESTS)
        run(_attach(host, ids, 0, FEW))
        before, agent_before = rss_kib(daemon.pid), rss_kib(agents[0].pid)
        run(_attach(host, ids, FEW, DEVICES))
        each = (rss_kib(daemon.pid) - before) / (DEVICES - FEW) - RING_KIB
        agent_each = (rss_kib(agents[0].pid) - agent_before) / ((DEVICES - FEW) / GUESTS) - RING_KIB
    yield (
        f"memory: dom0, each of {DEVICES} idle devices",
        f"{each:.1f} KiB beyond its ring",
        "at most 64 KiB",
        each <= 64,
    )
    yield "memory: guest, each idle device", f"{agent_each:.1f} KiB beyond its ring", "at most 64 KiB", agent_each <= 64


async def _attach(host: Machine, ids: list, first: int, end: int) -> None:  # type: ignore[type-arg]
    async with StoreClient(unix_endpoint(host.store)) as store:
        for start in range(first, end, 100):
            await attach_all(store, ids[start : min(start + 100, end)])
