"""The disk path: 4 KiB random reads through a ring, this process the frontend and dom0's daemon the backend."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median

from machine import Machine, cpu_s, machine

from xenbusd import log, toolstack
from xenbusd.api import FrontendDevice
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.runtime import Runtime
from xenbusd.host.sim.client import SimHost
from xenbusd.ids import DeviceClass, Devid, Domid
from xenbusd.process.loop import run
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint
from xenbusd_vbd.front.ring_disk import RingDisk
from xenbusd_vbd.frontend import VbdFrontend

IMAGE_MIB = 256
BLOCK = 4096
DEPTH, SECONDS, ROUNDS = 32, 3.0, 3
LATENCY_REQUESTS = 20_000


class BenchFrontend(VbdFrontend):
    """A vbd frontend that hands its disk to the benchmark instead of exporting it."""

    shown: asyncio.Future[RingDisk]

    async def offer_to_programs(self, dev: FrontendDevice, disk: RingDisk) -> None:
        del dev
        if not self.shown.done():
            self.shown.set_result(disk)


def measure() -> Iterator[tuple[str, str, str, bool | None]]:
    """Requests per second, CPU per request, and latency; the backend keeps to one core and we to another."""
    log.setup(level="warning")
    with machine() as host:
        image = host.folder / "disk.img"
        with open(image, "wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(1 << 20))
        backend = host.serve("--class", "vbd", "--log-level", "warning")
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            os.sched_setaffinity(backend.pid, {cores[0]})
            os.sched_setaffinity(0, {cores[1]})
        try:
            rates, cpu_us, latencies = run(_measure(host, str(image), backend.pid))
        finally:
            os.sched_setaffinity(0, set(cores))
    rate = max(rates)
    shown = " ".join(f"{each:,.0f}" for each in rates)
    latencies.sort()
    p50, p99 = latencies[len(latencies) // 2] * 1e6, latencies[len(latencies) * 99 // 100] * 1e6
    yield (
        f"vbd: 4 KiB random reads, depth {DEPTH}",
        f"{rate:,.0f}/s (rounds: {shown})",
        "at least 100,000/s on one core",
        rate >= 100_000,
    )
    yield "vbd: backend CPU for each request", f"{median(cpu_us):.2f} us", "", None
    yield "vbd: latency at depth 1", f"p50 {p50:.0f} us, p99 {p99:.0f} us", "", None


async def _measure(host: Machine, image: str, backend_pid: int) -> tuple[list[float], list[float], list[float]]:
    loop = asyncio.get_running_loop()
    BenchFrontend.shown = loop.create_future()
    id = DeviceId(DeviceClass("vbd"), Domid(1), Devid(51712))
    with closing(SimHost(host.path, Domid(1))) as guest:
        async with StoreClient(guest.store, window=16) as store, StoreClient(unix_endpoint(host.store)) as dom0:
            runtime = Runtime(
                store,
                guest,
                [BenchFrontend],
                domid=Domid(1),
                log=log.get(),
                run_dir=str(host.folder),
                owns_run_dir=False,
                state_dir=str(host.folder),
                options={},
            )
            runtime.start()
            await toolstack.attach(dom0, id, {"params": image, "mode": "r"}, {"virtual-device": "51712"})
            await toolstack.wait_connected(dom0, id)
            disk = await BenchFrontend.shown
            await _load(disk, DEPTH, 0.5)  # until the pages are mapped
            rates, cpu_us = [], []
            for _ in range(ROUNDS):
                before = cpu_s(backend_pid)
                requests, seconds = await _load(disk, DEPTH, SECONDS)
                rates.append(requests / seconds)
                cpu_us.append((cpu_s(backend_pid) - before) / requests * 1e6)
            latencies = await _latencies(disk, LATENCY_REQUESTS)
            await runtime.stop()
    return rates, cpu_us, latencies


async def _load(disk: RingDisk, depth: int, seconds: float) -> tuple[int, float]:
    """Keep `depth` reads under way for some seconds. Return how many were done, and in what time."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    offsets = [random.randrange(disk.size_bytes // BLOCK) * BLOCK for _ in range(1 << 14)]
    began = time.perf_counter()
    count = under_way = 0
    running = True

    def done(error: int, _: object) -> None:
        nonlocal count, under_way
        if error:
            sys.exit(f"bench: a read failed with errno {error}")
        count += 1
        if running:
            disk.read(offsets[count & 0x3FFF], BLOCK, done)
        else:
            under_way -= 1
            if not under_way:
                finished.set_result(None)

    for number in range(depth):
        under_way += 1
        disk.read(offsets[number], BLOCK, done)
    await asyncio.sleep(seconds)
    running = False
    total, lasted = count, time.perf_counter() - began
    await finished
    return total, lasted


async def _latencies(disk: RingDisk, requests: int) -> list[float]:
    """Seconds that each of some single reads took."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    times: list[float] = []
    began = 0.0

    def done(error: int, _: object) -> None:
        times.append(time.perf_counter() - began)
        if error:
            sys.exit(f"bench: a read failed with errno {error}")
        if len(times) < requests:
            loop.call_soon(begin)
        else:
            finished.set_result(None)

    def begin() -> None:
        nonlocal began
        began = time.perf_counter()
        disk.read(random.randrange(disk.size_bytes // BLOCK) * BLOCK, BLOCK, done)

    begin()
    await finished
    return times
