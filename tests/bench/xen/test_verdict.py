"""The judgement of `make xen-bench`, on figures made up for it: what is met and what is not."""

from __future__ import annotations

from typing import Any

from tests.bench.xen.cells import BACKENDS, CELLS, interleaved
from tests.bench.xen.verdict import Figures, verdicts

NAMES = [cell.name for cell in CELLS]


def figures(**iops: list[float]) -> Figures:
    """Figures with these IOPS for each backend: one number for each cell, or one for all."""
    lines: list[dict[str, Any]] = []
    for backend, values in iops.items():
        for name, value in zip(NAMES, values * (len(NAMES) // len(values)), strict=True):
            # a median of three: an outlier on either side changes nothing
            for each in (value, value * 100, value / 100):
                lines.append({"kind": "cell", "cell": name, "backend": backend, "iops": each})
    return Figures.of(lines)


def test_every_cell_must_be_above_qdisk() -> None:
    """One cell that is only as fast as qdisk is not met; the others are."""
    found = verdicts(figures(qdisk=[100.0], xenbusd=[101.0] * 6 + [100.0]), NAMES)
    assert [each.met for each in found] == [True] * 6 + [False]
    assert found[-1].what == "read-1m-d4 above qdisk: 1.00"


def test_four_cells_of_seven_must_be_above_blkback() -> None:
    """Four are enough, three are not."""
    four = verdicts(figures(blkback=[100.0], xenbusd=[101.0] * 4 + [50.0] * 3), NAMES)
    three = verdicts(figures(blkback=[100.0], xenbusd=[101.0] * 3 + [50.0] * 4), NAMES)
    assert [each.met for each in four] == [True]
    assert [each.met for each in three] == [False]


def test_what_was_not_measured_is_not_judged() -> None:
    """A few cells do not say anything about four of seven, and one backend alone says nothing."""
    assert verdicts(figures(xenbusd=[1.0]), NAMES) == []
    found = verdicts(figures(blkback=[1.0], qdisk=[1.0], xenbusd=[2.0]), NAMES[:2])
    assert [each.what for each in found] == ["randread-d1 above qdisk: 2.00", "randwrite-d1 above qdisk: 2.00"]


def test_backends_take_turns() -> None:
    """In three rounds each cell is measured three times on each backend, and each backend is the first in a third."""
    turns = list(interleaved(CELLS, BACKENDS, 3))
    assert len(turns) == len(set(turns)) == 63
    first = [backend for _, _, backend in turns[::3]]
    assert [first.count(backend) for backend in BACKENDS] == [7, 7, 7]
    for at in range(0, 63, 3):
        assert {backend for _, _, backend in turns[at : at + 3]} == set(BACKENDS)
        assert len({cell for _, cell, _ in turns[at : at + 3]}) == 1
