"""How long the tools take to answer, beside Python itself: `--help`, and a list of the devices of a simulated host."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from machine import machine

ROUNDS = 7
BEYOND_PYTHON_S = 0.25
"""Expected of each, at most, on a quiet machine."""


def measure() -> Iterator[tuple[str, str, str, bool | None]]:
    """Seconds from start to end of each command: the median of rounds that take turns."""
    with machine() as host:
        commands = {
            "python -c pass": ["-c", "pass"],
            "xenbusd --help": ["-m", "xenbusd", "--help"],
            "xenbusctl --help": ["-m", "xenbusd.cli.ctl", "--help"],
            "xenbusctl attach --help": ["-m", "xenbusd.cli.ctl", "attach", "--help"],
            "xenbusctl list": ["-m", "xenbusd.cli.ctl", "--host", host.spec, "list"],
        }
        host.ctl("attach", "echo", "--domain", "0", "--devid", "0", "--no-wait")
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, arguments in commands.items():
                seconds[name].append(_timed(arguments))
    python, *tools = commands
    bare = median(seconds[python])
    yield f"tools: {python}", f"{bare:.3f} s", "", None
    for name in tools:
        took = median(seconds[name])
        beyond = took - bare
        expected = f"at most {BEYOND_PYTHON_S} s beyond Python"
        yield f"tools: {name}", f"{took:.3f} s, {beyond:.3f} s beyond Python", expected, beyond <= BEYOND_PYTHON_S


def _timed(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
