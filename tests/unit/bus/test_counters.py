"""xenbusd.bus.counters: the counters of a device, for each of its queues and as a whole."""

from __future__ import annotations

import pytest

from xenbusd.bus.counters import COMMON, Counter, Counters, Histogram, HistogramSnapshot, Measure, Snapshot

DROPPED = Counter("dropped", "packets", "not delivered")
BATCH = Histogram("batch", "packets", "delivered by one notification", bounds=(1, 4, 16))


def test_every_device_counts_the_same() -> None:
    """Four counters from the start; the fifth once it has something."""
    counters = Counters()
    assert dict(counters) == {"requests": 0, "bytes": 0, "errors": 0, "notifications": 0}
    assert counters["throttled"] == 0
    assert "throttled" not in counters
    counters["throttled"] += 1
    assert dict(counters) == {"requests": 0, "bytes": 0, "errors": 0, "notifications": 0, "throttled": 1}
    assert len(counters) == 5


def test_a_driver_declares_its_own() -> None:
    """They follow the common ones, in the order of their declaration."""
    counters = Counters([DROPPED])
    assert list(counters) == ["requests", "bytes", "errors", "notifications", "dropped"]


def test_queues_add_up() -> None:
    """What is counted in a queue's plain dict is seen in the device's sums; so is what belongs to no queue."""
    counters = Counters([DROPPED])
    counters.queue(0).counts["dropped"] += 2
    counters.queue(1).counts["dropped"] += 3
    counters["dropped"] += 4
    assert counters["dropped"] == 9
    assert counters.queues == [0, 1]
    assert [counters.snapshot(queue).counters["dropped"] for queue in (0, 1)] == [2, 3]
    assert type(counters.queue(0).counts) is dict


def test_a_queue_counts_on_over_a_reconnect() -> None:
    """The queue of the same number continues where the last one stopped."""
    counters = Counters()
    counters.queue(0).counts["requests"] += 5
    counters.queue(0).counts["requests"] += 1
    assert counters["requests"] == 6


@pytest.mark.parametrize("name", ["typo", "batch", ""])
def test_a_name_that_was_not_declared_is_an_error(name: str) -> None:
    """A misspelt name makes no new counter; a histogram is no counter."""
    counters = Counters([BATCH])
    with pytest.raises(KeyError):
        counters[name] += 1
    with pytest.raises(KeyError):
        counters[name] = 1
    with pytest.raises(KeyError):
        counters.queue(0).counts[name] += 1
    assert name not in counters


def test_a_counter_cannot_be_deleted() -> None:
    """It was declared."""
    counters = Counters()
    with pytest.raises(TypeError):
        del counters["requests"]


@pytest.mark.parametrize("measure", [DROPPED, BATCH, Counter("requests", "requests", "again")])
def test_a_name_stands_for_one_thing(measure: Measure) -> None:
    """Neither a driver nor the driver and the bus may declare it twice."""
    with pytest.raises(ValueError, match="declared twice"):
        Counters([measure, measure])
    with pytest.raises(ValueError, match="declared twice"):
        Counters([Counter("errors", "errors", "of its own")])


def test_values_fall_into_buckets() -> None:
    """Each into the first whose bound it does not exceed, the largest into one more."""
    counters = Counters([BATCH])
    for value in (0, 1, 2, 4, 5, 16, 17, 1000):
        counters.queue(0).histograms["batch"].add(value)
    assert counters.snapshot().histograms["batch"] == HistogramSnapshot((1, 4, 16), (2, 2, 2, 2), 1045)


def test_histograms_of_queues_add_up() -> None:
    """With the device's own."""
    counters = Counters([BATCH])
    counters.queue(0).histograms["batch"].add(1)
    counters.queue(1).histograms["batch"].add(20)
    counters.histograms["batch"].add(2)
    assert counters.snapshot().histograms["batch"] == HistogramSnapshot((1, 4, 16), (1, 1, 0, 1), 23)
    assert counters.snapshot(1).histograms["batch"] == HistogramSnapshot((1, 4, 16), (0, 0, 0, 1), 20)


def test_a_snapshot_stays_as_it_is() -> None:
    """Whatever is counted later."""
    counters = Counters([BATCH])
    before = counters.snapshot()
    counters["requests"] += 1
    counters.histograms["batch"].add(1)
    assert before == Snapshot(
        {"requests": 0, "bytes": 0, "errors": 0, "notifications": 0},
        {"batch": HistogramSnapshot((1, 4, 16), (0, 0, 0, 0), 0)},
    )


@pytest.mark.parametrize("bounds", [(), (2, 1), (1, 1)])
def test_buckets_ascend(bounds: tuple[float, ...]) -> None:
    """A histogram that could not be filled is refused where it is declared."""
    with pytest.raises(ValueError, match="bounds must ascend"):
        Histogram("batch", "packets", "delivered", bounds=bounds)


def test_what_is_common_is_explained() -> None:
    """Each has a unit and a sentence's end."""
    assert all(measure.unit and measure.help for measure in COMMON)
