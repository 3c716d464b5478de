"""The store: pipelined reads by our client against pyxs's on the same server, in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import pyxs
from machine import machine

from xenbusd.process.loop import run
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint

BATCH = 500
OURS, THEIRS, ROUNDS = 200_000, 10_000, 5
PATHS = [f"/bench/{number % 40}/node-{number}" for number in range(BATCH)]
"""As many different nodes as are asked for at once, each with a value of its own."""


def measure() -> Iterator[tuple[str, str, str, bool | None]]:
    """Reads per second, ours and pyxs's, and their ratio: the median of rounds that take turns."""
    ours, theirs = [], []
    with machine() as host:
        run(_fill(host.store))
        for _ in range(ROUNDS):
            theirs.append(_pyxs(host.store))
            ours.append(run(_ours(host.store)))
    ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True))
    yield "store: pipelined reads, xenbusd", f"{median(ours):,.0f}/s", "", None
    yield "store: reads, pyxs.Client, same server", f"{median(theirs):,.0f}/s", "", None
    yield "store: ratio", f"{ratio:.1f} times", "at least 10", ratio >= 10


async def _fill(path: str) -> None:
    async with StoreClient(unix_endpoint(path)) as client:
        for number, node in enumerate(PATHS):
            await client.write(node, f"value {number}")


async def _ours(path: str) -> float:
    async with StoreClient(unix_endpoint(path)) as client:
        began = time.perf_counter()
        for _ in range(OURS // BATCH):
            for answer in [client.read(path) for path in PATHS]:
                await answer
        return OURS / (time.perf_counter() - began)


def _pyxs(path: str) -> float:
    with pyxs.Client(unix_socket_path=path) as client:
        paths = [path.encode() for path in PATHS]
        began = time.perf_counter()
        for number in range(THEIRS):
            client.read(paths[number % BATCH])
        return THEIRS / (time.perf_counter() - began)
