"""The journal's file: who may go on with a ring, and who may not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenbusd.bus.handover import Handover, forget, identity, journal_path
from xenbusd.errors import ConnectionEnded

RING = identity([8, 9], 3)
PAGES, SLOT = 2, 112


def path_of(folder: Path) -> str:
    """Where the journal is."""
    return str(folder / "vbd-3-51712.ring")


@pytest.mark.parametrize(("in_order", "left"), [(True, False), (False, True), (True, True)])
def test_a_ring_that_was_left_or_is_in_order_is_gone_on_with(tmp_path: Path, in_order: bool, left: bool) -> None:
    """A stop in order or the driver's promise is enough; the next kill has only the promise."""
    first = Handover(path_of(tmp_path))
    first.begin(RING, PAGES, SLOT, in_order=in_order)
    if left:
        first.mark_clean()
    first.close()
    second = Handover(path_of(tmp_path))
    second.adopt(RING, PAGES, SLOT)
    second.close()
    third = Handover(path_of(tmp_path))
    if in_order:
        third.adopt(RING, PAGES, SLOT)
    else:
        with pytest.raises(ConnectionEnded, match="out of order"):
            third.adopt(RING, PAGES, SLOT)
    third.close()


def test_a_ring_of_a_driver_that_was_killed_and_promised_nothing(tmp_path: Path) -> None:
    """It may have answered out of order: the device is to close."""
    Handover(path_of(tmp_path)).begin(RING, PAGES, SLOT, in_order=False)
    heir = Handover(path_of(tmp_path))
    with pytest.raises(ConnectionEnded, match="out of order"):
        heir.adopt(RING, PAGES, SLOT)
    heir.close()


@pytest.mark.parametrize(
    ("ring", "pages", "sentence"),
    [(identity([8, 10], 3), PAGES, "not the journal of this ring"), (RING, 1, "not of this ring's size")],
)
def test_another_rings_journal(tmp_path: Path, ring: int, pages: int, sentence: str) -> None:
    """Other grants, another port, another size: refused, and the file is let go of all the same."""
    Handover(path_of(tmp_path)).begin(RING, PAGES, SLOT, in_order=True)
    heir = Handover(path_of(tmp_path))
    with pytest.raises(ConnectionEnded, match=sentence) as caught:
        heir.adopt(ring, pages, SLOT)
    heir.close()  # as in `connect`, while the exception and its frames live
    del caught


def test_no_journal(tmp_path: Path) -> None:
    """/run was cleared, or the daemon is of another version: nothing to go on with."""
    with pytest.raises(ConnectionEnded, match="no journal"):
        Handover(path_of(tmp_path)).adopt(RING, PAGES, SLOT)


def test_a_connection_that_ends_in_order_leaves_no_file(tmp_path: Path) -> None:
    """Nothing stays behind; forgetting twice is as good as once."""
    handover = Handover(path_of(tmp_path))
    handover.begin(RING, PAGES, SLOT, in_order=True)
    assert os.stat(path_of(tmp_path)).st_mode & 0o777 == 0o600
    handover.close()
    forget(path_of(tmp_path))
    forget(path_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_each_ring_of_a_device_has_a_journal_of_its_own(tmp_path: Path) -> None:
    """The first one's name is the one that a device of one ring has always had; all go together, others' stay."""
    paths = [journal_path(path_of(tmp_path), number) for number in range(11)]
    assert paths[0] == path_of(tmp_path)
    assert len(set(paths)) == 11
    for path in paths:
        handover = Handover(path)
        handover.begin(RING, PAGES, SLOT, in_order=True)
        handover.close()
    Handover(str(tmp_path / "vbd-3-5171.ring")).begin(RING, PAGES, SLOT, in_order=True)
    forget(path_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["vbd-3-5171.ring"]
