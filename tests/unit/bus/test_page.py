"""A shared page that is no ring; the rest is in tests/machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.doubles.events import FakePorts
from xenbusd.bus.channel import Channel
from xenbusd.bus.counters import COMMON, Tally
from xenbusd.bus.handover import PageNote
from xenbusd.bus.page import BackPage
from xenbusd.ids import Port


class Fixture:
    """A page's link, with its note in a file."""

    def __init__(self, path: Path) -> None:
        self.ports = FakePorts()
        self.released = 0
        device: Any = SimpleNamespace(details=None)
        self.device = device
        channel = Channel(self.ports, Port(5), Tally(COMMON), lambda _: None)
        dev: Any = None
        grants: Any = None
        note = PageNote(str(path), 7)
        note.begin()
        self.link = BackPage(dev, device, memoryview(bytearray(4096)), channel, grants, self.release, note)

    def release(self) -> None:
        """Take note."""
        assert self.ports.acts == [("unbind", 5)]
        self.released += 1


async def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    """The port first, then the page; and only once."""
    page = Fixture(tmp_path / "note")
    assert page.device.details is not None
    page.link.close()
    page.link.close()
    assert page.released == 1
    assert page.device.details is None


async def test_the_note_says_that_a_request_was_taken(tmp_path: Path) -> None:
    """For the next daemon."""
    page = Fixture(tmp_path / "note")
    assert page.link.taken is False
    page.link.taken = True
    page.link.close()
    heir = PageNote(str(tmp_path / "note"), 7)
    heir.adopt()
    assert heir.taken
    heir.close()
