"""The guest that is measured: a PV domain whose console takes orders."""

from __future__ import annotations

import json
import os
import re
import select
import time
import tty
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.bench.xen.cells import Cell
from tests.xen.dom0 import OUT, Guest, run

NAME = "bench"
MEMORY_MIB = 1024
SECTOR = 512
ANSWER_S = 120.0
"""How long the guest may take to answer beyond the time that fio runs, on a busy machine."""


class Report(NamedTuple):
    """What one fio run did, as fio and the guest's block layer say."""

    iops: float
    bytes_per_s: float
    latency_us: float
    """Mean, of completion."""
    moved_bytes: int
    """Everything that went through the disk meanwhile, fio's ramp too."""


class BenchGuest(Guest):
    """A guest with fio, one processor, and an open console.

    Args:
        disks: as in xl's `disk=`.
    """

    def __init__(self, disks: Sequence[str]) -> None:
        super().__init__(NAME, "bench", list(disks), memory_mb=MEMORY_MIB)
        with open(self._ramdisk, "ab") as ramdisk:
            ramdisk.write((OUT / "fio.cpio").read_bytes())
        self._console = -1
        self._text = b""

    def listen(self) -> None:
        """Open its console, once it is ready."""
        self.wait_for(r"^bench: ready$")
        path = run("xenstore-read", f"/local/domain/{self.domid}/console/tty").strip()
        self._console = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._console)

    def _order(self, line: str) -> None:
        while select.select([self._console], [], [], 0)[0]:  # what it said before is of no interest any more
            os.read(self._console, 65536)
        self._text = b""
        os.write(self._console, line.encode() + b"\n")

    def _answer(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait until what it has said since the last order matches. Nothing is polled: dom0 has one processor only."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self._text.decode(errors="replace").replace("\r", "")
            if match := re.search(pattern, text, re.M | re.S):
                return match
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._console], [], [], left_s)[0]:
                raise AssertionError(f"no {pattern!r} from the guest within {timeout_s:g} s; it said:\n{text[-3000:]}")
            self._text += os.read(self._console, 65536)

    def disks(self) -> list[str]:
        """The disks that it has now."""
        self._order("disks")
        return self._answer(r"^bench: disks(.*?)$", ANSWER_S)[1].split()

    def start(self, cell: Cell, disk: str, seconds: float, ramp_s: float) -> float:
        """Have fio begin. Return the seconds that `wait_ended` may take."""
        job = (
            f"--name={cell.name} --rw={cell.rw} --bs={cell.block_bytes} --iodepth={cell.depth} --ioengine=libaio "
            f"--direct=1 --time_based --runtime={seconds:g} --ramp_time={ramp_s:g} --randseed={cell.depth}"
        )
        self._order(f"fio {disk} {job}")
        return seconds + ramp_s + ANSWER_S

    def wait_ended(self, timeout_s: float) -> None:
        """Wait until fio has ended; what it reports comes later."""
        self._answer(r"^bench: ended \d+$", timeout_s)

    def report(self, cell: Cell) -> Report:
        """What the fio run that has ended did.

        Raises:
            AssertionError: it failed.
        """
        match = self._answer(r"^bench: ended (\d+)$.*^bench: stat ([\d ]+)$(.*)^bench: over$", ANSWER_S)
        assert match[1] == "0", match[3]
        fields = [int(word) for word in match[2].split()]
        before, after = fields[: len(fields) // 2], fields[len(fields) // 2 :]
        job: dict[str, Any] = json.loads(match[3][match[3].index("{") :])["jobs"][0]
        assert job["error"] == 0, job
        side = job[cell.side]
        return Report(
            iops=side["iops"],
            bytes_per_s=side["bw_bytes"],
            latency_us=side["clat_ns"]["mean"] / 1000,
            # Linux, Documentation/block/stat.rst: the third field counts sectors read, the seventh sectors written
            moved_bytes=(after[2] - before[2] + after[6] - before[6]) * SECTOR,
        )

    def close(self) -> None:
        """Be rid of it."""
        if self._console >= 0:
            os.close(self._console)
        self.destroy()
