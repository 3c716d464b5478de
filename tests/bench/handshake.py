"""The handshake: many echo devices attached at once, until both ends of each are Connected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from machine import Machine, machine

from xenbusd import toolstack
from xenbusd.bus.paths import DeviceId
from xenbusd.ids import DeviceClass, Devid, Domid
from xenbusd.process.loop import run
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint

DEVICES, GUESTS, ROUNDS = 200, 2, 3
DEADLINE_S = 120.0


def measure() -> Iterator[tuple[str, str, str, bool | None]]:
    """Devices per second, attach to Connected; the best of some rounds with fresh hosts."""
    rates = []
    for _ in range(ROUNDS):
        with machine() as host:
            host.serve("--class", "echo")
            for domid in range(1, GUESTS + 1):
                host.agent(domid, "--class", "echo")
            ids = echo_devices(DEVICES, GUESTS)
            rates.append(DEVICES / run(_attach_timed(host, ids)))
    best = max(rates)
    shown = " ".join(f"{rate:.0f}" for rate in rates)
    yield (
        f"handshake: {DEVICES} echo devices at once",
        f"{best:.0f} devices/s (rounds: {shown})",
        "at least 200/s",
        best >= 200,
    )


def echo_devices(count: int, guests: int) -> list[DeviceId]:
    """Device names, spread over guests: one may own 1000 nodes only."""
    return [
        DeviceId(DeviceClass("echo"), Domid(1 + number % guests), Devid(number // guests)) for number in range(count)
    ]


async def _attach_timed(host: Machine, ids: Sequence[DeviceId]) -> float:
    async with StoreClient(unix_endpoint(host.store)) as store:
        began = time.perf_counter()
        await attach_all(store, ids)
        return time.perf_counter() - began


async def attach_all(store: StoreClient, ids: Sequence[DeviceId]) -> None:
    """Attach devices, all at once, and wait until each is Connected on both ends."""
    left = {path + "/state" for id in ids for path in (id.backend_path, id.frontend_path)}
    watch = await store.watch("/local/domain", depth=8)
    await asyncio.gather(*(toolstack.attach(store, id, {}, {}) for id in ids))
    async with asyncio.timeout(DEADLINE_S):
        while left:
            hints = await watch.wait()
            paths = list(left if watch.path in hints else hints & left)
            states = [store.read(path) for path in paths]
            for path, state in zip(paths, states, strict=True):
                if await state == b"4":
                    left.discard(path)
    await watch.unwatch()
