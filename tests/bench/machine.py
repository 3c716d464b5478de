"""A simulated host for measurements: each part a process of its own, as in real life."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A running simulated host.

    Args:
        folder: for sockets, logs and images; on tmpfs.
        stack: ends what is started.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.path = str(folder / "host")
        self.host = f"sim:{self.path}"
        self.store = self.path + ".store"
        self._stack = stack

    def start(self, name: str, *arguments: str, ready: str) -> subprocess.Popen[bytes]:
        """Start `xenbusd ARGUMENTS` and wait until the socket `ready` is there."""
        log = self._stack.enter_context(open(self.folder / f"{name}.log", "wb"))
        child = subprocess.Popen([sys.executable, "-m", "xenbusd", *arguments], stdout=log, stderr=log)
        self._stack.callback(end, child)
        while not os.path.exists(ready):
            if child.poll() is not None:
                sys.exit(f"bench: {name} ended:\n{(self.folder / f'{name}.log').read_text()}")
            time.sleep(0.01)
        return child

    def serve(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start dom0's backends."""
        return self.start("dom0", "serve", "--host", self.host, *arguments, ready=self.path + ".dom0/control.sock")

    def agent(self, domid: int, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a guest's frontends."""
        command = ("agent", "--host", self.host, "--domid", str(domid), *arguments)
        return self.start(f"guest{domid}", *command, ready=f"{self.path}.dom{domid}/control.sock")


@contextmanager
def machine() -> Iterator[Machine]:
    """A simulated host without daemons; all ends with the block."""
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="xenbusd-bench-", dir=shm) as folder, ExitStack() as stack:
        host = Machine(Path(folder), stack)
        host.start("sim", "sim", "--socket", host.path, ready=host.store)
        yield host


def end(child: subprocess.Popen[bytes]) -> None:
    """Tell a process to end, and see to it."""
    child.terminate()
    try:
        child.wait(15)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


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
