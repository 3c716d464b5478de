"""Boots the host that is measured, and follows what its dom0 writes down while it does."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench.xen.cells import interleaved
from tests.bench.xen.load import OtherLoad
from tests.xen import build, host
from tests.xen.archive import Archive

ITEM = "tests/bench/xen/inside/measure.py"
FIO = "/usr/bin/fio"
START_S, CELL_S, BRING_UP_S, PROFILE_S = 300, 12, 30, 60
"""What setting up takes, and each fio run, disk attached and instrument beyond its own time, on a busy machine."""
READ_S = 0.5
"""Between two reads of the file that the booted host writes its lines to."""


def boot(order: dict[str, Any], out: Path) -> tuple[list[dict[str, Any]], float, str]:
    """Boot the host, have its dom0 carry out an order, and wait for the end.

    Args:
        order: as inside/measure.py takes it.
        out: an empty folder.

    Returns: what dom0 has written down, each figure with the part of the machine that others used meanwhile
        (`others`); the seconds that it took; and, for when it is not all there, where to look.
    Blocks: for minutes.
    """
    (out / "order.json").write_text(json.dumps(order))
    _fio(build.image()).write(out / "fio.cpio")
    follower = _Follower(out / "figures.jsonl")
    began = time.monotonic()
    follower.start()
    try:
        machine = host.Boot([ITEM], out, tests_s=_limit_s(order))
    finally:
        follower.stop()
    return follower.lines, time.monotonic() - began, machine.story()


def _limit_s(order: dict[str, Any]) -> int:
    runs = len(list(interleaved(order["cells"], order["backends"], order["rounds"])))
    profiled = len(order["cells"]) * 3 * order["profile"]
    attached = order["bring_up_rounds"] * len(order["backends"])
    fio_s = (runs + profiled) * (order["seconds"] + CELL_S)
    return int(START_S + fio_s + profiled * PROFILE_S + attached * BRING_UP_S)


def _fio(image: build.Image) -> Archive:
    """What the guest has beyond the tests' guests: fio, and the job that takes orders."""
    archive = Archive()
    archive.copy(image.root / FIO[1:], FIO[1:])
    for library in image.libraries(FIO):
        archive.copy(image.root / library, str(library))
    archive.file("jobs/bench.sh", (Path(__file__).parent / "inside" / "job.sh").read_bytes(), executable=True)
    return archive


class _Follower(threading.Thread):
    """Reads dom0's figures as they come, says them on stderr, and notes how busy others kept the machine."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.lines: list[dict[str, Any]] = []
        self._path = path
        self._over = threading.Event()
        self._read_to = 0

    def stop(self) -> None:
        """Read the rest, and end."""
        self._over.set()
        self.join()

    def run(self) -> None:
        load = OtherLoad()
        while not self._over.wait(READ_S):
            self._read(load)
        self._read(load)

    def _read(self, load: OtherLoad) -> None:
        try:
            with open(self._path) as file:
                file.seek(self._read_to)
                new = file.read()
        except FileNotFoundError:
            return
        whole, _, _ = new.rpartition("\n")
        if not whole:
            return
        self._read_to += len(whole) + 1
        others = load.since_last()
        for line in map(json.loads, whole.splitlines()):
            self.lines.append({**line, "others": round(others, 2)})
            print(_short(self.lines[-1]), file=sys.stderr, flush=True)


def _short(line: dict[str, Any]) -> str:
    if line["kind"] == "cell":
        return (
            f"round {line['round']}  {line['cell']:<14} {line['backend']:<8} {line['iops']:8.0f} IOPS"
            f"  {line['mib_per_s']:7.1f} MiB/s  {line['cpu_s_per_gib']:8.1f} CPU s/GiB  others {line['others']:.2f}"
        )
    if line["kind"] == "bring-up":
        return f"round {line['round']}  bring-up       {line['backend']:<8} {line['connected_s']:.2f} s"
    return f"xen-bench: {line['kind']}"
