"""xenbusd.bus.finding: facts about a device, as sentences that the bus and the toolstack share."""

from __future__ import annotations

import pytest

from xenbusd.bus.finding import Finding, end, not_at, not_begun, not_hotplugged, not_offered
from xenbusd.bus.state import Side, State
from xenbusd.ids import DOM0, Domid


def test_a_finding_is_a_sentence() -> None:
    """Subject, the rest of the statement, and what can be done, if anything can."""
    assert str(Finding("the tape drive", "is empty")) == "the tape drive is empty"
    assert str(Finding("the tape drive", "is empty", "put a reel in")) == "the tape drive is empty; put a reel in"


def test_findings_are_values() -> None:
    """Two of the same content are equal, and none changes."""
    assert Finding("a", "b") == Finding("a", "b", "")
    assert len({Finding("a", "b"), Finding("a", "b")}) == 1


@pytest.mark.parametrize(("side", "name"), [(Side.BACKEND, "the backend"), (Side.FRONTEND, "the frontend")])
def test_an_end_is_named_with_its_domain(side: Side, name: str) -> None:
    """There may be several of each."""
    assert end(side, Domid(7)) == f"{name} in domain 7"


@pytest.mark.parametrize(
    ("finding", "sentence"),
    [
        (
            not_begun(DOM0, "tape"),
            "the backend in domain 0 has not begun; check that `xenbusd serve` runs there, with a driver for tape",
        ),
        (
            not_offered(Domid(5), State.INITIALISING),
            "the frontend in domain 5 has not offered its ring (its state is Initialising); "
            "check that its driver is running",
        ),
        (
            not_offered(Domid(5), State.CLOSED),
            "the frontend in domain 5 has not offered its ring (its state is Closed)",
        ),
        (not_hotplugged("block", None), "the hotplug script block has not reported (hotplug-status is not there)"),
        (not_hotplugged("block", ""), "the hotplug script block has not reported (hotplug-status is not there)"),
        (not_hotplugged(None, "busy"), "the hotplug script has not reported (hotplug-status is busy)"),
        (
            not_at(Side.BACKEND, DOM0, State.CONNECTED),
            "the backend in domain 0 has not switched to Connected",
        ),
    ],
)
def test_sentences(finding: Finding, sentence: str) -> None:
    """Who has not done what, with what is known of it."""
    assert str(finding) == sentence
