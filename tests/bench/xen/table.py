"""The measured figures, for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.xen.cells import BACKENDS, cell
from tests.bench.xen.verdict import Figures

BUSY = 0.3
"""Processors that others may use before a figure is marked."""


def show(figures: Figures, cells: Iterable[str], title: str) -> None:
    """Print medians, ratios and dom0's processor time; a star marks what was measured on a busy machine."""
    table = Table(box=box.SIMPLE_HEAD, title=title)
    table.add_column("IOPS, median")
    for heading in (*BACKENDS, "to blkback", "to qdisk"):
        table.add_column(heading, justify="right")
    for heading in BACKENDS:
        table.add_column(f"CPU s/GiB {heading}", justify="right")
    for name in cells:
        medians = [_number(figures.median(name, backend), 0) for backend in BACKENDS]
        ratios = [_number(figures.ratio(name, other), 2) for other in ("blkback", "qdisk")]
        costs = [_number(figures.median(name, backend, "cpu_s_per_gib"), 1) for backend in BACKENDS]
        table.add_row(cell(name).title + _star(figures, name), *medians, *ratios, *costs)
    times = {backend: figures.bring_up_s(backend) for backend in BACKENDS}
    ours = times["xenbusd"]
    ratios = [_number(ours / other if ours and (other := times[name]) else None, 2) for name in ("blkback", "qdisk")]
    table.add_row("xl block-attach to 4/4, s", *(_number(times[backend], 2) for backend in BACKENDS), *ratios)
    Console(width=150).print(table)
    print("* others kept the machine busy meanwhile. Emulated: only the ratios mean anything.")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _star(figures: Figures, name: str) -> str:
    busy = any(each["others"] > BUSY for backend in BACKENDS for each in figures.cells.get((name, backend), []))
    return " *" if busy else ""
