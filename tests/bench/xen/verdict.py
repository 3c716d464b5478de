"""From figures to medians, ratios and a verdict. Nothing here looks at the machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

ABOVE_BLKBACK = 4
"""In how many of the seven cells we must be above Linux's backend."""


@dataclass
class Figures:
    """Everything that was measured.

    Args:
        lines: as dom0 wrote them, parsed.
    """

    cells: Mapping[tuple[str, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """By cell and backend, each round's."""
    bring_up: Mapping[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    complete: bool = False

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Figures:
        """Sort what dom0 wrote."""
        figures = cls()
        for line in lines:
            if line["kind"] == "cell":
                figures.cells[line["cell"], line["backend"]].append(dict(line))
            elif line["kind"] == "bring-up":
                figures.bring_up[line["backend"]].append(dict(line))
            elif line["kind"] == "ended":
                figures.complete = True
        return figures

    def median(self, cell: str, backend: str, key: str = "iops") -> float | None:
        """The median of a cell's rounds; None if there is none."""
        values = [each[key] for each in self.cells.get((cell, backend), [])]
        return median(values) if values else None

    def ratio(self, cell: str, other: str, key: str = "iops") -> float | None:
        """Ours to another backend's, of medians."""
        ours, theirs = self.median(cell, "xenbusd", key), self.median(cell, other, key)
        return ours / theirs if ours is not None and theirs else None

    def bring_up_s(self, backend: str) -> float | None:
        """The median time to Connected."""
        values = [each["connected_s"] for each in self.bring_up.get(backend, [])]
        return median(values) if values else None


@dataclass(frozen=True)
class Verdict:
    """What was asked, and whether it was met."""

    what: str
    met: bool


def verdicts(figures: Figures, cells: Iterable[str]) -> list[Verdict]:
    """Judge the cells that were measured on all the backends that the judgement needs."""
    cells = list(cells)
    found = []
    for cell in cells:
        ratio = figures.ratio(cell, "qdisk")
        if ratio is not None:
            found.append(Verdict(f"{cell} above qdisk: {ratio:.2f}", ratio > 1))
    against = {cell: ratio for cell in cells if (ratio := figures.ratio(cell, "blkback")) is not None}
    if len(against) >= ABOVE_BLKBACK:
        above = [cell for cell, ratio in against.items() if ratio > 1]
        names = ", ".join(above) or "none"
        what = f"above blkback in {len(above)} of {len(against)} cells, {ABOVE_BLKBACK} wanted: {names}"
        found.append(Verdict(what, len(above) >= ABOVE_BLKBACK))
    return found
