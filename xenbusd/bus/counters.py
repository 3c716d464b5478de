"""A device's counters and histograms, declared once and kept for each queue; and snapshots of them. Pure.

Each counter or histogram is declared once, with its unit and its meaning: by the bus for every class (`COMMON`), by a
driver, for its own class, in the class body:

    class VifBackend(Backend, device_class="vif"):
        counters = (
            Counter("dropped", "packets", "not delivered, for want of a slot in the guest's ring"),
            Histogram("batch", "packets", "delivered by one notification", bounds=(1, 4, 16, 64)),
        )

Each link has its own, for the data path: `link.counters["dropped"] += 1` is one step in a plain dict,
`link.histograms["batch"].add(count)` a bisection. A driver that has no link at hand counts in `dev.counters` and
`dev.histograms`. A name that was not declared is a KeyError.

`dev.counters` shows the sums over the device and all its queues; they are kept over reconnects. A `Snapshot`, of the
device or of one queue, is exported; drivers need not know the format.

Decision: D58.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Counter:
    """Something that is counted, and never decreases.

    Args:
        name: an identifier in small letters, unique for the device.
        unit: the thing that is counted, in the plural: "requests", "bytes".
        help: which of these things are counted, to be read after the unit: "taken from the ring".
        rare: leave it out where it is 0.
    """

    name: str
    unit: str
    help: str
    rare: bool = False


@dataclass(frozen=True)
class Histogram:
    """The distribution of a value: how many values were how large.

    Args:
        name, unit, help: as for `Counter`.
        bounds: upper bounds of the buckets, each included in its bucket, ascending; one more bucket takes the values
            above the last.
    """

    name: str
    unit: str
    help: str
    bounds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.bounds or list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError(f"histogram {self.name}: bounds must ascend, and there must be one: {self.bounds}")


Measure = Counter | Histogram

COMMON: tuple[Measure, ...] = (
    Counter("requests", "requests", "taken from the ring, or sent"),
    Counter("bytes", "bytes", "moved for requests"),
    Counter("errors", "requests", "that failed"),
    Counter("notifications", "events", "sent to the other end"),
    Counter("throttled", "events", "answered late, because too many of the other end's brought no work", rare=True),
)
"""Counted for every device."""


@dataclass(frozen=True)
class HistogramSnapshot:
    """A histogram at one moment.

    `counts` has one number for each of `bounds` and one for the values above the last; `total` is the sum of all
    values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True)
class Snapshot:
    """The counts at one moment, by name, in the order of declaration; rare counters at 0 are left out."""

    counters: Mapping[str, int]
    histograms: Mapping[str, HistogramSnapshot]


class Distribution:
    """A histogram that is being filled."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total: float = 0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> HistogramSnapshot:
        """Return its contents now."""
        return HistogramSnapshot(self._bounds, tuple(self._counts), self._total)


class Tally:
    """The counts of one place: of one queue, or of the device outside its queues.

    Args:
        measures: the counters and histograms to keep.
    """

    __slots__ = ("counts", "histograms")

    def __init__(self, measures: Iterable[Measure]) -> None:
        self.counts: dict[str, int] = {}
        self.histograms: dict[str, Distribution] = {}
        for measure in measures:
            if isinstance(measure, Counter):
                self.counts[measure.name] = 0
            else:
                self.histograms[measure.name] = Distribution(measure.bounds)


class Counters(MutableMapping[str, int]):
    """The counters of a device: a mapping of sums over the device and its queues.

    A rare counter at 0 is not in it, but can be read and counted all the same, as in a `collections.Counter`.

    Args:
        declared: the driver's own, besides `COMMON`.

    Raises:
        ValueError: a name is declared twice.
    """

    __slots__ = ("_measures", "_own", "_queues")

    def __init__(self, declared: Iterable[Measure] = ()) -> None:
        self._measures = _by_name((*COMMON, *declared))
        self._own = Tally(self._measures.values())
        self._queues: dict[int, Tally] = {}

    @property
    def histograms(self) -> Mapping[str, Distribution]:
        """Histograms of the device, for values that belong to no queue."""
        return self._own.histograms

    @property
    def own(self) -> Tally:
        """The counts outside the queues: of the device, or of a ring beside its queues."""
        return self._own

    @property
    def queues(self) -> list[int]:
        """The numbers of all queues that there have been so far."""
        return sorted(self._queues)

    def queue(self, number: int) -> Tally:
        """The counts of one queue: the same object for the same number, in every connection."""
        if number not in self._queues:
            self._queues[number] = Tally(self._measures.values())
        return self._queues[number]

    def snapshot(self, queue: int | None = None) -> Snapshot:
        """Return the counts so far.

        Args:
            queue: the number of a queue; None: the whole device.
        """
        tallies = [self._own, *self._queues.values()] if queue is None else [self.queue(queue)]
        counters, histograms = {}, {}
        for name, measure in self._measures.items():
            if isinstance(measure, Histogram):
                histograms[name] = _sum([tally.histograms[name].snapshot() for tally in tallies])
            elif (count := sum(tally.counts[name] for tally in tallies)) or not measure.rare:
                counters[name] = count
        return Snapshot(counters, histograms)

    def __getitem__(self, name: str) -> int:
        return sum(tally.counts[name] for tally in (self._own, *self._queues.values()))

    def __setitem__(self, name: str, value: int) -> None:
        self._own.counts[name] += value - self[name]

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name} was declared: it cannot be deleted")

    def __contains__(self, name: object) -> bool:
        return name in self.snapshot().counters

    def __iter__(self) -> Iterator[str]:
        return iter(self.snapshot().counters)

    def __len__(self) -> int:
        return len(self.snapshot().counters)


@cache
def _by_name(measures: tuple[Measure, ...]) -> Mapping[str, Measure]:
    """The measures by name: one table for all devices of a driver."""
    table = {measure.name: measure for measure in measures}
    if len(table) < len(measures):
        raise ValueError(f"a name is declared twice: {', '.join(measure.name for measure in measures)}")
    return table


def _sum(parts: list[HistogramSnapshot]) -> HistogramSnapshot:
    columns = zip(*(part.counts for part in parts), strict=True)
    return HistogramSnapshot(parts[0].bounds, tuple(map(sum, columns)), sum(part.total for part in parts))
