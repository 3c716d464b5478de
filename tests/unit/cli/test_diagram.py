"""xenbusd.cli.diagram: a timeline as the 2006 paper draws it."""

from __future__ import annotations

from xenbusd.cli.diagram import draw
from xenbusd.control.protocol import TimelineEntry

HANDSHAKE = [
    (10.0, "backend", "Initialising"),
    (10.0, "frontend", "Initialising"),
    (10.0004, "backend", "InitWait"),
    (10.0005, "hotplug", "start"),
    (10.014, "hotplug", "write physdets"),
    (10.0145, "frontend", "Initialised"),
    (10.017, "backend", "Connected"),
    (10.0195, "frontend", "Connected"),
]

DRAWN = """\
                                         Xenbus                      Xenbus
    ms           Hotplug                 Backend                    Frontend
                 -------                 -------                    --------
     0.0                              Initialising                Initialising
     0.4                                InitWait                        |
     0.5            |<---start--------------+                           |
    14.0     write physdets---------------->|                           |
    14.5                                    |<---------------------Initialised
    17.0                                Connected---------------------->|
    19.5                                    |<----------------------Connected"""


def test_a_handshake() -> None:
    """Times from the first event on; an arrow to the end that an event is meant for; a bar where a column has begun."""
    assert "\n".join(draw([TimelineEntry(*entry) for entry in HANDSHAKE])) == DRAWN


def test_nothing_happened_yet() -> None:
    """The columns' titles alone."""
    assert len(draw([])) == 3


def test_an_end_that_has_not_begun_has_no_bar() -> None:
    """A backend alone draws its own column, and no arrow to nobody."""
    lines = draw([TimelineEntry(1.0, "backend", "Initialising"), TimelineEntry(2.0, "backend", "Closed")])
    assert lines[3:] == [
        "     0.0                              Initialising",
        "  1000.0                                 Closed",
    ]
