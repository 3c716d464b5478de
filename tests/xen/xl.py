"""Xen's own toolstack, run with full logging, and its log parsed: for which states it waited, and how long."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from xenbusd.bus.state import State

LIMIT_S = {State.INIT_WAIT: 2.0, State.CLOSED: 10.0}
"""How long libxl may have to wait for a backend's state, even under emulation. Its own limit is 10 s for either
(LIBXL_INIT_TIMEOUT, LIBXL_DESTROY_TIMEOUT)."""

_WATCH = re.compile(r"xswatch_register: .*wpath=(\S+/backend/\S+/state) .*: register")
_DONE = re.compile(r"devstate_callback: backend (\S+) wanted state (\d) ok")
_DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_TOO_LATE = re.compile(r"devstate_timeout|timed out")


@dataclass(frozen=True)
class Wait:
    """One wait of libxl's for a backend, which came to the state that was wanted."""

    path: str
    state: State
    lasted_s: float


@dataclass(frozen=True)
class Said:
    """xl's output, and the waits that it reports."""

    text: str
    waits: list[Wait]

    def __contains__(self, words: str) -> bool:
        return words in self.text

    def assert_reached(self, state: State, times: int = 1, *, within_s: float | None = None) -> None:
        """libxl saw so many backends come to a state, each within LIMIT_S or another limit, and none too late."""
        reached = [wait for wait in self.waits if wait.state is state]
        print(f"wanted state {state:d}: {', '.join(f'{wait.lasted_s:.2f} s' for wait in reached)}")
        assert len(reached) == times, self.text
        assert max(wait.lasted_s for wait in reached) <= (within_s or LIMIT_S[state]), reached
        assert not _TOO_LATE.search(self.text), self.text


def xl(*words: str | Path, fails: bool = False, timeout_s: float = 120.0) -> Said:
    """Run xl to its end. It must succeed; or fail, if `fails`. Its lines are timed as they come."""
    argv = ["xl", "-vvv", *map(str, words)]
    lines: list[tuple[float, str]] = []
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        limit = threading.Timer(timeout_s, process.kill)
        limit.start()
        assert process.stdout is not None
        lines.extend((time.monotonic(), line) for line in process.stdout)
        process.wait()
        limit.cancel()
    said = _understand(lines)
    print(f"$ {' '.join(argv)}  -> {process.returncode}\n{said.text}")
    assert (process.returncode != 0) == fails, f"xl ended with {process.returncode}: {said.text[-2000:]}"
    return said


def log_of(domain: str) -> Said:
    """The log of the xl that stays behind to watch a domain, to within a second: `xl -T` dates its lines."""
    path = Path(f"/var/log/xen/xl-{domain}.log")
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    return _understand(_dated(lines))


def _dated(lines: list[str]) -> Iterable[tuple[float, str]]:
    now = 0.0
    for line in lines:
        if date := _DATE.search(line):
            now = datetime.fromisoformat(date[0]).timestamp()
        yield now, line


def _understand(lines: Iterable[tuple[float, str]]) -> Said:
    began: dict[str, float] = {}
    waits: list[Wait] = []
    text: list[str] = []
    for now, line in lines:
        text.append(line)
        if found := _WATCH.search(line):
            began[found[1]] = now
        elif found := _DONE.search(line):
            waits.append(Wait(found[1], State(int(found[2])), now - began.get(found[1], now)))
    return Said("".join(text), waits)
