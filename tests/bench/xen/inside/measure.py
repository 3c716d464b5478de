"""What dom0 does for `make xen-bench`: a test for pytest, so that whatever goes wrong is told as any test's failure is.

Orders come in /mnt/out/order.json, and each figure is written to /mnt/out/figures.jsonl as soon as it is known.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.xen.cells import BACKENDS, CELLS, Cell, cell, interleaved
from tests.bench.xen.inside.clock import Dom0Clock
from tests.bench.xen.inside.disks import bring_up, disk_name, line, make_image
from tests.bench.xen.inside.guest import BenchGuest
from tests.bench.xen.inside.profiler import Profiler
from tests.xen.dom0 import OUT, run, until

IMAGE_BYTES = 256 << 20
SPARE_BYTES = 16 << 20
WARM_S, RAMP_S = 3.0, 1.0
"""fio before the first round, which maps what is mapped once; and in front of each cell."""
GIB = 1 << 30
SERVE = Path(__file__).parent / "serve.py"


def tell(kind: str, **what: Any) -> None:
    """Write a figure down, for the machine outside."""
    with open(OUT / "figures.jsonl", "a") as file:
        file.write(json.dumps({"kind": kind, "at_s": round(time.monotonic(), 1), **what}) + "\n")


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Our daemon for a while, beside Linux's backend. Yields its process id."""
    options = ["--host", "xen", "--run-dir", str(folder / "run"), "--class", "vbd", "--arbiter"]
    log = OUT / "serve.log"
    with open(log, "wb") as stderr:
        argv = [sys.executable, str(SERVE), "serve", *options]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=stderr, env=Profiler.environment())
    try:
        until(lambda: True if "daemon.started" in log.read_text() or process.poll() is not None else None, "daemon")
        assert process.poll() is None, log.read_text()
        tell("daemon started")
        yield process.pid
    finally:
        process.terminate()
        process.wait(120)


@contextmanager
def guest_of(folder: Path, backends: tuple[str, ...]) -> Iterator[BenchGuest]:
    """The guest with a disk from each backend, listening. The images have no holes."""
    images = {backend: make_image(folder / f"{backend}.img", IMAGE_BYTES) for backend in backends}
    guest = BenchGuest([line(backend, disk_name(backend), image) for backend, image in images.items()])
    try:
        tell("images made")
        guest.create()
        tell("guest created")
        guest.listen()
        wanted = [disk_name(backend) for backend in backends]
        until(lambda: True if guest.disks() == wanted else None, f"disks {wanted}")
        yield guest
    finally:
        guest.close()


def measure_cell(guest: BenchGuest, clock: Dom0Clock, one: Cell, backend: str, seconds: float) -> dict[str, float]:
    """One fio run, and dom0's processor time for it."""
    before = clock.cpu_s()
    deadline_s = guest.start(one, disk_name(backend), seconds, RAMP_S)
    guest.wait_ended(deadline_s)
    cpu_s = clock.cpu_s() - before
    report = guest.report(one)
    return {
        "iops": report.iops,
        "mib_per_s": report.bytes_per_s / (1 << 20),
        "latency_us": report.latency_us,
        "cpu_s_per_gib": cpu_s / (report.moved_bytes / GIB),
    }


def measure_bring_up(guest: BenchGuest, folder: Path, backends: tuple[str, ...], rounds: int) -> None:
    """How long `xl block-attach` takes to both ends Connected; the backends take turns."""
    domid = guest.domid
    images = {backend: make_image(folder / f"spare-{backend}.img", SPARE_BYTES) for backend in backends}
    for number in range(1, rounds + 1):
        for turn in range(len(backends)):
            backend = backends[(number + turn) % len(backends)]
            connected_s, returned_s = asyncio.run(bring_up(backend, images[backend], domid, "xvdd"))
            tell("bring-up", backend=backend, round=number, connected_s=connected_s, returned_s=returned_s)


def test_side_by_side(tmp_path: Path) -> None:
    """Everything that order.json asks for."""
    order = json.loads((OUT / "order.json").read_text())
    cells = [cell(name) for name in order["cells"]]
    backends = tuple(backend for backend in BACKENDS if backend in order["backends"])
    # Linux's backend may come; the daemon decides which disk is whose.
    Path("/etc/modprobe.d/xenbusd.conf").unlink(missing_ok=True)
    run("modprobe", "xen-blkback")
    run("modprobe", "loop")
    clock = Dom0Clock()
    with serving(tmp_path) as pid, guest_of(tmp_path, backends) as guest:
        for backend in backends:
            for one in (CELLS[2], CELLS[-1]):
                measure_cell(guest, clock, one, backend, WARM_S)
        tell("warmed up")
        for number, one, backend in interleaved(cells, backends, order["rounds"]):
            figures = measure_cell(guest, clock, one, backend, order["seconds"])
            tell("cell", cell=one.name, backend=backend, round=number, **figures)
        measure_bring_up(guest, tmp_path, backends, order["bring_up_rounds"])
        if order["profile"]:
            profiler = Profiler(pid)
            for one in cells:
                for pass_ in profiler.passes(one.title):
                    with pass_:
                        figures = measure_cell(guest, clock, one, "xenbusd", order["seconds"])
                    pass_.tell(figures["iops"] * (order["seconds"] + RAMP_S))
    tell("ended")
