"""`make bench`: measures store, handshake, disk path, memory and tools on a simulated host, and prints a table.

Nothing here is a test: machines differ and are shared. Each figure is printed with the one expected on two cores and,
where there is a peer, as a ratio to it in the same run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import disk
import handshake
import memory
import store
import tools
from rich import box
from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One figure."""

    what: str
    figure: str
    expected: str
    good: bool | None


def main() -> None:
    """Measure everything, or the benchmarks named on the command line, and print the table."""
    parts: dict[str, Callable[[], Iterator[tuple[str, str, str, bool | None]]]] = {
        "store": store.measure,
        "handshake": handshake.measure,
        "vbd": disk.measure,
        "memory": memory.measure,
        "tools": tools.measure,
    }
    names = sys.argv[1:] or list(parts)
    unknown = [name for name in names if name not in parts]
    if unknown:
        sys.exit(f"bench: there is no {unknown[0]}; there are {', '.join(parts)}")
    table = Table(box=box.SIMPLE_HEAD, title=f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    for title in ("what", "measured", "expected", ""):
        table.add_column(title, overflow="fold")
    rows = []
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        for row in map(Row._make, parts[name]()):
            rows.append(row)
            mark = {True: "met", False: "NOT MET", None: ""}[row.good]
            table.add_row(row.what, row.figure, row.expected, mark)
    Console(width=110).print(table)
    missed = sum(row.good is False for row in rows)
    print(f"{missed} of {sum(row.good is not None for row in rows)} expectations not met" if missed else "all met")


if __name__ == "__main__":
    main()
