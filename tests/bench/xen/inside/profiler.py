"""Where the daemon's time goes: passes over a cell with one instrument each, told in /mnt/out/profile.txt."""

from __future__ import annotations

import io
import os
import pstats
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.xen.dom0 import OUT, until

DUMP = Path("/tmp/xenbusd.prof")
STRACE = Path("/tmp/xenbusd.strace")
TEXT = OUT / "profile.txt"
FUNCTIONS, PROCESSES = 30, 8
TICKS = os.sysconf("SC_CLK_TCK")


class Pass:
    """One instrument, in use while the block lasts.

    Args:
        title: of the cell.
        pid: the daemon's.
    """

    name = "?"

    def __init__(self, title: str, pid: int) -> None:
        self.title = title
        self.pid = pid

    def __enter__(self) -> Self:
        """Begin."""
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._end()

    def _begin(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _found(self) -> str:
        raise NotImplementedError

    def tell(self, requests: float) -> None:
        """Write down what was found, and about how many requests of fio it was spent on."""
        with open(TEXT, "a") as file:
            print(f"=== {self.title}: {self.name}, about {requests:.0f} requests of fio\n{self._found()}", file=file)


class Accounts(Pass):
    """Which of dom0's processes and kernel threads use the processor: what needs no instrument."""

    name = "processor time in dom0"

    def _begin(self) -> None:
        self._before = _accounts()

    def _end(self) -> None:
        after = _accounts()
        used = {
            key: (user - self._before.get(key, (0, 0))[0], system - self._before.get(key, (0, 0))[1])
            for key, (user, system) in after.items()
        }
        self._most = sorted(used.items(), key=lambda item: -sum(item[1]))[:PROCESSES]

    def _found(self) -> str:
        return "".join(
            f"{name:<24} thread {tid:>6}   user {user / TICKS:6.2f} s   system {system / TICKS:6.2f} s\n"
            for (tid, name), (user, system) in self._most
            if user + system
        )


class Functions(Pass):
    """cProfile on the daemon's event loop."""

    name = "cProfile"

    def _begin(self) -> None:
        DUMP.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)

    def _end(self) -> None:
        os.kill(self.pid, signal.SIGUSR2)
        until(lambda: True if DUMP.exists() else None, "profile")

    def _found(self) -> str:
        text = io.StringIO()
        pstats.Stats(str(DUMP), stream=text).strip_dirs().sort_stats("tottime").print_stats(FUNCTIONS)
        return text.getvalue()


class SystemCalls(Pass):
    """strace, counting; it slows the daemon down, so that its figures count as shares."""

    name = "strace -c -f"

    def _begin(self) -> None:
        argv = ["strace", "-c", "-f", "-o", str(STRACE), "-p", str(self.pid)]
        self._strace = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: True if self._attached() else None, "strace")

    def _attached(self) -> bool:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return f"TracerPid:\t{self._strace.pid}\n" in status

    def _end(self) -> None:
        self._strace.send_signal(signal.SIGINT)
        self._strace.wait(60)

    def _found(self) -> str:
        return STRACE.read_text()


class Profiler:
    """The instruments for one daemon.

    Args:
        pid: its process, which runs serve.py.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @staticmethod
    def environment() -> dict[str, str]:
        """What the daemon has to be started with."""
        return {**os.environ, "PROFILE": str(DUMP)}

    def passes(self, title: str) -> Iterator[Pass]:
        """Each instrument, for one cell."""
        for kind in (Accounts, Functions, SystemCalls):
            yield kind(title, self._pid)


def _accounts() -> dict[tuple[int, str], tuple[int, int]]:
    """Ticks of each thread, in user and in system mode, by its number and name."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        try:
            head, _, tail = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = tail.split()
        found[int(path.parent.name), head.partition("(")[2]] = int(fields[11]), int(fields[12])
    return found
