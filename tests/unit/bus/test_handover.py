"""The files of a connection: when the next daemon may adopt a ring or page, and when not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenbusd.bus.handover import (
    AfterCleanStop,
    Handover,
    InOrder,
    PageNote,
    forget,
    identity,
    journal_path,
    sweep,
)
from xenbusd.errors import ConnectionEnded

RING = identity([8, 9], 3)
PAGES, SLOT = 2, 112
DEVICE = "vbd-3-51712"


def path_of(folder: Path) -> str:
    """Where the journal is."""
    return str(folder / "vbd-3-51712.ring")


@pytest.mark.parametrize(("in_order", "left"), [(True, False), (False, True), (True, True)])
def test_a_ring_that_was_left_or_is_in_order_is_adopted(tmp_path: Path, in_order: bool, left: bool) -> None:
    """A stop in order or the driver's promise is enough; the next kill has only the promise."""
    first = Handover(path_of(tmp_path))
    first.begin(RING, PAGES, SLOT, InOrder() if in_order else AfterCleanStop())
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
    Handover(path_of(tmp_path)).begin(RING, PAGES, SLOT)
    heir = Handover(path_of(tmp_path))
    with pytest.raises(ConnectionEnded, match="out of order"):
        heir.adopt(RING, PAGES, SLOT)
    heir.close()


@pytest.mark.parametrize(
    ("ring", "pages", "sentence"),
    [(identity([8, 10], 3), PAGES, "not the journal of this ring"), (RING, 1, "not of this ring's size")],
)
def test_another_rings_journal(tmp_path: Path, ring: int, pages: int, sentence: str) -> None:
    """Other grants, another port, another size: refused, and the file is closed all the same."""
    Handover(path_of(tmp_path)).begin(RING, PAGES, SLOT, InOrder())
    heir = Handover(path_of(tmp_path))
    with pytest.raises(ConnectionEnded, match=sentence) as caught:
        heir.adopt(ring, pages, SLOT)
    heir.close()  # as in `connect`, while the exception and its frames live
    del caught


def test_no_journal(tmp_path: Path) -> None:
    """/run was cleared, or the daemon is of another version: nothing to adopt."""
    with pytest.raises(ConnectionEnded, match="no journal"):
        Handover(path_of(tmp_path)).adopt(RING, PAGES, SLOT)


def test_a_connection_that_ends_in_order_leaves_no_file(tmp_path: Path) -> None:
    """Nothing stays behind; forgetting twice is as good as once."""
    handover = Handover(path_of(tmp_path))
    handover.begin(RING, PAGES, SLOT, InOrder())
    assert os.stat(path_of(tmp_path)).st_mode & 0o777 == 0o600
    handover.close()
    forget(str(tmp_path), DEVICE)
    forget(str(tmp_path), DEVICE)
    assert list(tmp_path.iterdir()) == []


def test_each_ring_of_a_device_has_a_journal_of_its_own(tmp_path: Path) -> None:
    """The first one's name is the one that a device of one ring has always had; all go together, others' stay."""
    paths = [journal_path(str(tmp_path), DEVICE, number) for number in range(11)]
    assert paths[0] == path_of(tmp_path)
    assert len(set(paths)) == 11
    for path in paths:
        handover = Handover(path)
        handover.begin(RING, PAGES, SLOT, InOrder())
        handover.close()
    Handover(str(tmp_path / "vbd-3-5171.ring")).begin(RING, PAGES, SLOT, InOrder())
    forget(str(tmp_path), DEVICE)
    assert [path.name for path in tmp_path.iterdir()] == ["vbd-3-5171.ring"]


def test_a_journals_bytes_do_not_change(tmp_path: Path) -> None:
    """An upgraded daemon adopts the rings that the previous one has left."""
    Handover(path_of(tmp_path)).begin(0x01020304, 1, SLOT, InOrder())
    raw = Path(path_of(tmp_path)).read_bytes()
    assert len(raw) == 4096
    assert raw[:28].hex(" ", 4) == "72696e67 01000000 01000000 00000000 00000000 00000000 04030201"
    note = PageNote(str(tmp_path / "note"), 0x01020304)
    note.begin()
    note.taken = True
    note.close()
    assert (tmp_path / "note").read_bytes().hex(" ", 4) == "78 62706704 03020101"


def test_sweeping(tmp_path: Path) -> None:
    """The files of vanished devices of the class go; those of devices that are there, and of others, stay."""
    kept = ["vbd-3-51712.ring", "vbd-3-51712.ring1", "vif-4-0.ring", "vbd-4.ring", "control.sock"]
    for name in [*kept, "vbd-4-51712.ring", "vbd-4-51712.ring12", "vbd-3-5171.ring"]:
        (tmp_path / name).touch()
    sweep(str(tmp_path), "vbd", {DEVICE})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    sweep(str(tmp_path / "none"), "vbd", set())


@pytest.mark.parametrize("taken", [True, False])
def test_a_note_outlives_its_writer(tmp_path: Path, taken: bool) -> None:
    """The next daemon finds what the last one noted of the same page."""
    path = str(tmp_path / "note")
    first = PageNote(path, 7)
    first.begin()
    first.taken = not taken
    first.taken = taken
    second = PageNote(path, 7)
    second.adopt()
    assert second.taken is taken
    for each in (first, second):
        each.close()
        each.close()


@pytest.mark.parametrize("left", [b"", b"xbpg", b"\0" * 9, b"much more than a note is"])
def test_no_note_no_adoption(tmp_path: Path, left: bytes) -> None:
    """A damaged note, or that of another page, does not let this one be adopted."""
    (tmp_path / "note").write_bytes(left)
    note = PageNote(str(tmp_path / "note"), 7)
    with pytest.raises(ConnectionEnded, match="left no note of this page"):
        note.adopt()
    note.close()
    other = PageNote(str(tmp_path / "other"), 8)
    other.begin()
    same_file = PageNote(str(tmp_path / "other"), 7)
    with pytest.raises(ConnectionEnded):
        same_file.adopt()
    other.close()
    same_file.close()
