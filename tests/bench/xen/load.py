"""How much of this machine others use while the emulator runs."""

from __future__ import annotations

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class OtherLoad:
    """Processors' worth of time that neither this process nor its children used, between one reading and the next."""

    def __init__(self) -> None:
        self._last = self._look()

    def since_last(self) -> float:
        """Processors that others kept busy since the last call; 0 is a quiet machine."""
        now = self._look()
        (busy, total, ours), self._last = (new - old for new, old in zip(now, self._last, strict=True)), now
        seconds = total / TICKS / (os.cpu_count() or 1)
        return max(0.0, (busy - ours) / TICKS / seconds) if seconds else 0.0

    def _look(self) -> tuple[int, int, int]:
        """Ticks: all that were not idle, all, and ours."""
        words = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle = words[3] + words[4]
        ours = sum(_ticks(pid) for pid in (os.getpid(), *_children(os.getpid())))
        return sum(words) - idle, sum(words), ours


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_children(child)]
    return found


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, fields[11:15]))
