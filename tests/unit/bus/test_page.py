"""What is kept beside a shared page, so that another process can go on with it; the rest is in tests/machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from xenbusd.bus.device import Device
from xenbusd.bus.page import BackPage
from xenbusd.errors import ConnectionEnded
from xenbusd.ids import Port


class _Around:
    """As much of a device's surroundings as a closed link needs."""

    def __init__(self) -> None:
        self.host = self.grants = self.events = self.ports = self
        self.gone: list[object] = []

    def detach(self, port: Port) -> None:
        """Take note."""
        self.gone.append(("detached", port))

    def unbind(self, port: Port) -> None:
        """Take note."""
        self.gone.append(("unbound", port))


class _Dev:
    """As much of a device."""

    def __init__(self) -> None:
        self.services = _Around()
        self.counters: dict[str, int] = {}
        self.details: Any = None


def link(path: Path, identity: int) -> BackPage:
    """A page's link, with its note in a file."""
    note = os.open(path, os.O_RDWR | os.O_CREAT)
    return BackPage(cast("Device", _Dev()), memoryview(bytearray(4096)), Port(5), lambda: None, note, identity)


@pytest.mark.parametrize("taken", [True, False])
def test_a_note_outlives_its_writer(tmp_path: Path, taken: bool) -> None:
    """The next process finds what the last one noted of the same page."""
    first = link(tmp_path / "note", 7)
    first.taken = not taken
    first.taken = taken
    second = link(tmp_path / "note", 7)
    second.recall()
    assert second.taken is taken
    for each in (first, second):
        each.close()


@pytest.mark.parametrize("left", [b"", b"xbpg", b"\0" * 9, b"much more than a note is"])
def test_no_note_no_going_on(tmp_path: Path, left: bytes) -> None:
    """What is no note, or that of another page, says nothing of this one."""
    (tmp_path / "note").write_bytes(left)
    page = link(tmp_path / "note", 7)
    with pytest.raises(ConnectionEnded, match="left no note of this page"):
        page.recall()
    page.close()
    other = link(tmp_path / "other", 8)
    other.taken = True
    same_file = link(tmp_path / "other", 7)
    with pytest.raises(ConnectionEnded):
        same_file.recall()
    other.close()
    same_file.close()


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    """The port first, then the page; and only once."""
    page = link(tmp_path / "note", 7)
    page.close()
    page.close()
    assert cast("Any", page.dev).services.gone == [("detached", 5), ("unbound", 5)]
