"""What is kept beside a shared page, so that another process can go on with it; the rest is in tests/machine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.doubles.events import FakePorts
from xenbusd.bus.channel import Channel
from xenbusd.bus.counters import COMMON, Tally
from xenbusd.bus.page import BackPage
from xenbusd.errors import ConnectionEnded
from xenbusd.ids import Port


class Page:
    """A page's link, with its note in a file.

    Args:
        path: the file.
        identity: of the page.
    """

    def __init__(self, path: Path, identity: int) -> None:
        self.ports = FakePorts()
        self.released = 0
        dev: Any = SimpleNamespace(details=None)
        channel = Channel(self.ports, Port(5), Tally(COMMON), lambda _: None)
        note = os.open(path, os.O_RDWR | os.O_CREAT)
        grants: Any = None
        self.link = BackPage(dev, memoryview(bytearray(4096)), channel, grants, self.release, note, identity)

    def release(self) -> None:
        """Take note."""
        assert self.ports.acts == [("unbind", 5)]
        self.released += 1


@pytest.mark.parametrize("taken", [True, False])
async def test_a_note_outlives_its_writer(tmp_path: Path, taken: bool) -> None:
    """The next process finds what the last one noted of the same page."""
    first = Page(tmp_path / "note", 7).link
    first.taken = not taken
    first.taken = taken
    second = Page(tmp_path / "note", 7).link
    second.recall()
    assert second.taken is taken
    for each in (first, second):
        each.close()


@pytest.mark.parametrize("left", [b"", b"xbpg", b"\0" * 9, b"much more than a note is"])
async def test_no_note_no_going_on(tmp_path: Path, left: bytes) -> None:
    """What is no note, or that of another page, says nothing of this one."""
    (tmp_path / "note").write_bytes(left)
    page = Page(tmp_path / "note", 7).link
    with pytest.raises(ConnectionEnded, match="left no note of this page"):
        page.recall()
    page.close()
    other = Page(tmp_path / "other", 8).link
    other.taken = True
    same_file = Page(tmp_path / "other", 7).link
    with pytest.raises(ConnectionEnded):
        same_file.recall()
    other.close()
    same_file.close()


async def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    """The port first, then the page; and only once."""
    page = Page(tmp_path / "note", 7)
    page.link.close()
    page.link.close()
    assert page.released == 1
