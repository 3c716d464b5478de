"""What is measured side by side: fio jobs, backends, and how the two are put in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BACKENDS = ("blkback", "qdisk", "xenbusd")
"""Linux's xen-blkback on a loop device, QEMU's qdisk, and ours."""


@dataclass(frozen=True)
class Cell:
    """One fio job."""

    name: str
    """For the command line."""
    title: str
    """For people."""
    rw: str
    """fio's."""
    block_bytes: int
    depth: int

    @property
    def side(self) -> str:
        """In which half of fio's report it stands: "read" or "write"."""
        return self.rw.removeprefix("rand")


CELLS = (
    Cell("randread-d1", "4 KiB random read, depth 1", "randread", 4096, 1),
    Cell("randwrite-d1", "4 KiB random write, depth 1", "randwrite", 4096, 1),
    Cell("randread-d32", "4 KiB random read, depth 32", "randread", 4096, 32),
    Cell("randwrite-d32", "4 KiB random write, depth 32", "randwrite", 4096, 32),
    Cell("read-128k-d8", "128 KiB read, depth 8", "read", 128 << 10, 8),
    Cell("write-128k-d8", "128 KiB write, depth 8", "write", 128 << 10, 8),
    Cell("read-1m-d4", "1 MiB read, depth 4", "read", 1 << 20, 4),
)


def cell(name: str) -> Cell:
    """The cell of that name.

    Raises:
        KeyError
    """
    return {each.name: each for each in CELLS}[name]


def interleaved(cells: Sequence[Cell], backends: Sequence[str], rounds: int) -> Iterator[tuple[int, Cell, str]]:
    """Every cell on every backend, `rounds` times. The backends take turns in each cell, and in being the first."""
    turn = 0
    for number in range(1, rounds + 1):
        for each in cells:
            first = turn % len(backends)
            turn += 1
            for backend in (*backends[first:], *backends[:first]):
                yield number, each, backend
