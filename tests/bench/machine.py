"""The host of the measurements, simulated on tmpfs; and CPU time and memory of its processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xenbusd.testing import processes

TICKS = os.sysconf("SC_CLK_TCK")

Machine = processes.ProcessMachine


@contextmanager
def machine() -> Iterator[Machine]:
    """A simulated host without daemons; all ends with the block."""
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="xb-bench-", dir=shm) as folder, processes.machine(Path(folder)) as host:
        yield host


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_kib(pid: int) -> int:
    """Resident memory of a process, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError(f"no VmRSS of {pid}")
