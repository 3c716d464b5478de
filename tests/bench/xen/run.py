"""`make xen-bench`: the same fio jobs in the same guest against three disk backends of one real Xen host, in turns.

    python -m tests.bench.xen.run [--cells NAME,...] [--backends NAME,...] [--rounds N] [--seconds S] [--profile]

The host is booted under emulation, so that figures count as ratios between backends, never by themselves. The exit
status is 0 if every expectation that could be judged was met.

Decision: D40.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.bench.xen.boot import boot
from tests.bench.xen.cells import BACKENDS, CELLS
from tests.bench.xen.table import show
from tests.bench.xen.verdict import Figures, verdicts
from tests.xen import build

ROUNDS, SECONDS, BRING_UP_ROUNDS = 3, 5.0, 5


def main() -> None:
    """Boot, measure, and print the table."""
    options = _options()
    if reason := build.lacking():
        sys.exit(f"xen-bench: {reason}")
    out = Path(options.out or tempfile.mkdtemp(prefix="xenbusd-bench-"))
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        sys.exit(f"xen-bench: {out} is not empty")
    order = {
        "cells": options.cells,
        "backends": options.backends,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "bring_up_rounds": options.bring_up,
        "profile": options.profile,
    }
    load = os.getloadavg()[0]
    lines, took_s, story = boot(order, out)
    figures = Figures.of(lines)
    show(figures, options.cells, f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; {took_s / 60:.1f} minutes")
    if options.profile and (out / "profile.txt").exists():
        print((out / "profile.txt").read_text())
    found = verdicts(figures, options.cells)
    for each in found:
        print(f"{'MET    ' if each.met else 'NOT MET'} {each.what}")
    (out / "results.json").write_text(json.dumps({"order": order, "figures": lines}, indent=1))
    print(f"all figures are in {out}/results.json")
    if not figures.complete:
        sys.exit(f"xen-bench: it was not finished. {story}")
    sys.exit(not all(each.met for each in found))


def _options() -> argparse.Namespace:
    names = [cell.name for cell in CELLS]

    def some_of(known: list[str], what: str) -> object:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            for name in chosen:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"there is no {what} {name!r}; there are {', '.join(known)}")
            return chosen

        return parse

    def count(text: str) -> int:
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of times; write 0, 1, 2 ...")
        return int(text)

    def duration(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 1 <= value <= 600:
            raise argparse.ArgumentTypeError(f"{text!r} is no duration; write seconds, from 1 to 600")
        return value

    parser = argparse.ArgumentParser(prog="xen-bench", description="Measure three disk backends side by side.")
    add = parser.add_argument
    add("--cells", type=some_of(names, "cell"), default=names, metavar="NAME,...", help=f"of {', '.join(names)}")
    add("--backends", type=some_of(list(BACKENDS), "backend"), default=list(BACKENDS), metavar="NAME,...")
    add("--rounds", type=count, default=ROUNDS, metavar="N", help=f"[{ROUNDS}]")
    add("--seconds", type=duration, default=SECONDS, metavar="S", help=f"for each fio run [{SECONDS:g}]")
    add("--bring-up", type=count, default=BRING_UP_ROUNDS, metavar="N", help=f"disks attached [{BRING_UP_ROUNDS}]")
    add("--profile", action="store_true", help="also look into the daemon: cProfile, strace -c, processor time")
    add("--out", metavar="DIR", help="an empty folder for all that comes back [a temporary one, kept]")
    return parser.parse_args(os.environ.get("XENBUSD_BENCH", "").split() + sys.argv[1:])


if __name__ == "__main__":
    main()
