"""Pages of memory files as one range."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from xenbusd.errors import LocalProtocolError
from xenbusd.host.sim.domain import Memory
from xenbusd.host.sim.pages import Pages, Run, runs
from xenbusd.ids import PAGE_SIZE


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Four pages, each filled with its own digit."""
    made = Memory(4)
    for page in range(4):
        os.pwrite(made.fd, b"%d" % page * PAGE_SIZE, page * PAGE_SIZE)
    yield made
    made.close()


def test_runs_join_what_follows() -> None:
    """Pages that follow each other in one file are one run; order is kept, and repeats are not joined."""
    places = [(5, 1), (5, 2), (5, 3), (5, 3), (6, 4), (5, 5), (5, 4)]
    assert runs(places) == [Run(5, 1, 3), Run(5, 3, 1), Run(6, 4, 1), Run(5, 5, 1), Run(5, 4, 1)]
    assert runs([]) == []


def test_parts_lie_one_after_the_other(memory: Memory) -> None:
    """Parts in any order make one range of whole pages."""
    pages = Pages([Run(memory.fd, 3, 1), Run(memory.fd, 0, 2)], writable=True)
    assert bytes(pages.view[::PAGE_SIZE]) == b"301"
    assert pages.view.nbytes == 3 * PAGE_SIZE
    pages.view[PAGE_SIZE] = ord("x")
    assert os.pread(memory.fd, 2, 0) == b"x0"
    pages.close()


def test_range_outlives_the_descriptors(memory: Memory) -> None:
    """The files may be closed once they are mapped, and none stays open for the range."""
    before = len(os.listdir("/proc/self/fd"))
    copy = os.dup(memory.fd)
    pages = Pages([Run(copy, 0, 4)], writable=False)
    os.close(copy)
    assert len(os.listdir("/proc/self/fd")) == before
    assert bytes(pages.view[-3:]) == b"333"
    pages.close()


def test_read_only_range_cannot_be_written(memory: Memory) -> None:
    """A read-only descriptor is enough for a read-only range, and not for a writable one."""
    reader = memory.descriptor(False)
    pages = Pages([Run(reader, 0, 1)], writable=False)
    with pytest.raises(TypeError):
        pages.view[0] = 1
    pages.close()
    with pytest.raises(PermissionError):
        Pages([Run(reader, 0, 1)], writable=True)


def test_bad_part_leaves_nothing_mapped(memory: Memory) -> None:
    """When a later part cannot be mapped the earlier ones are not kept either."""
    with open("/proc/self/maps") as maps:
        before = maps.read().count("xenbusd-share")
    with pytest.raises(OSError, match="Bad file descriptor"):
        Pages([Run(memory.fd, 0, 1), Run(-1, 0, 1)], writable=True)
    with open("/proc/self/maps") as maps:
        assert maps.read().count("xenbusd-share") == before


def test_close_waits_for_the_last_slice(memory: Memory) -> None:
    """With a slice alive the range stays, whole and usable; without one it goes, and may be closed twice."""
    pages = Pages([Run(memory.fd, 0, 2)], writable=True)
    slice_of_it = pages.view[0:4].cast("I")
    with pytest.raises(LocalProtocolError, match="2 pages"):
        pages.close()
    assert bytes(pages.view[0:2]) == b"00"
    slice_of_it.release()
    pages.close()
    pages.close()
    with pytest.raises(ValueError, match="released"):
        pages.view[0]


def test_view_that_its_user_has_released_is_no_obstacle(memory: Memory) -> None:
    """A ring releases the view that it was given; the range can be closed all the same."""
    pages = Pages([Run(memory.fd, 0, 1)], writable=True)
    pages.view.release()
    pages.close()
