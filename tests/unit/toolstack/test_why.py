"""xenbusd.toolstack.why: the sentence that says which end waits for what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.doubles.pairs import ELSEWHERE, ID
from xenbusd import toolstack
from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.driver import Backend
from xenbusd.bus.finding import Finding, Nodes, not_begun
from xenbusd.bus.state import State
from xenbusd.toolstack.pair import PairState

WELL = PairState(
    backend=State.CONNECTED,
    frontend=State.CONNECTED,
    online=True,
    hotplug_status="connected",
    hotplug_error=None,
    backend_error=None,
    frontend_error=None,
    script="/etc/xen/scripts/block",
)


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (replace(WELL, backend=State.UNKNOWN), "the backend's directory is gone"),
        (
            replace(WELL, backend=State.CLOSED, backend_error="2 cannot open /srv/a.img: No such file or directory"),
            "the backend in domain 0 reports: 2 cannot open /srv/a.img: No such file or directory",
        ),
        (
            replace(WELL, frontend=State.CLOSED, frontend_error="22 sectors is missing"),
            "the frontend in domain 3 reports: 22 sectors is missing",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, hotplug_status="error", hotplug_error="no loop device is free"),
            "the hotplug script reports: no loop device is free",
        ),
        (
            replace(WELL, backend=State.INITIALISING, frontend=State.INITIALISING),
            "the backend in domain 0 has not begun; check that `xenbusd serve` runs there, with a driver for vbd",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISED, hotplug_status=None),
            "the hotplug script /etc/xen/scripts/block has not reported (hotplug-status is not there)",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISED, hotplug_status="busy"),
            "the hotplug script /etc/xen/scripts/block has not reported (hotplug-status is busy)",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISING, script=None, hotplug_status=None),
            "the frontend in domain 3 has not offered its ring (its state is Initialising); "
            "check that its driver is running",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.UNKNOWN),
            "the frontend in domain 3 has not offered its ring (its state is Unknown); "
            "check that its driver is running",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT),
            "the backend in domain 0 is at InitWait, though the frontend in domain 3 is Connected",
        ),
        (
            replace(WELL, frontend=State.INITIALISED),
            "the backend in domain 0 is at Connected, the frontend in domain 3 at Initialised",
        ),
        (
            replace(WELL, backend=State.CLOSING, frontend=State.CLOSING),
            "the backend in domain 0 is at Closing, the frontend in domain 3 at Closing",
        ),
    ],
)
def test_who_has_not_done_what(seen: PairState, sentence: str) -> None:
    """One sentence: what was reported, else who has not done what comes next, and what can be done about it."""
    assert toolstack.stuck(seen, ID) == sentence


def test_a_failed_script_is_reported_before_its_consequences() -> None:
    """The first cause, not the backend's report of it."""
    seen = replace(WELL, backend_error="5 hotplug failed", hotplug_error="the reason")
    assert toolstack.stuck(seen, ID) == "the hotplug script reports: the reason"


def test_a_driver_domain_is_named() -> None:
    """Both domains by their numbers."""
    seen = replace(WELL, backend=State.INITIALISING)
    assert toolstack.stuck(seen, ELSEWHERE).startswith("the backend in domain 7 has not begun")


class TapeBackend(Backend, device_class="tape"):
    """A driver that knows what its own nodes mean."""

    @classmethod
    def explain(cls, nodes: Nodes) -> Iterator[Finding]:
        """A reel may be missing."""
        if nodes.backend.get("reel") == b"":
            yield Finding("the tape drive", "is empty", "put a reel in")

    async def run(self, dev: BackendDevice) -> None: ...


def test_a_driver_says_what_it_knows() -> None:
    """After what the pair's states tell; of a pair that is Connected, alone."""
    waiting, empty = replace(WELL, backend=State.INITIALISING), Nodes({"reel": b""}, {})
    expected = Finding("the tape drive", "is empty", "put a reel in")
    assert toolstack.explain(WELL, ID, empty, TapeBackend) == [expected]
    assert toolstack.explain(waiting, ID, empty, TapeBackend) == [not_begun(ID.backend_domid, "vbd"), expected]
    assert toolstack.explain(WELL, ID, Nodes({"reel": b"A"}, {}), TapeBackend) == []


def test_a_driver_that_says_nothing() -> None:
    """Or that is not there: the states are explained all the same."""
    waiting = replace(WELL, backend=State.INITIALISING)
    for driver in (Backend, None):
        assert list(map(str, toolstack.explain(waiting, ID, Nodes({}, {}), driver))) == [toolstack.stuck(waiting, ID)]
