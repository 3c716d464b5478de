"""xenbusd.toolstack.why: which end waits for what, in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.doubles.pairs import ELSEWHERE, ID
from xenbusd import toolstack
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
        (replace(WELL, backend=State.UNKNOWN), "its backend directory is gone"),
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
            "the backend in domain 0 has not begun; is `xenbusd serve` running there, with a driver for vbd?",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISED, hotplug_status=None),
            "the backend in domain 0 waits for its hotplug script (/etc/xen/scripts/block) to report",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISED, hotplug_status="busy"),
            "the backend in domain 0 waits for its hotplug script (/etc/xen/scripts/block) to report",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.INITIALISING, script=None, hotplug_status=None),
            "the backend in domain 0 is at InitWait and waits for the frontend in domain 3, which has not begun; "
            "is its driver running?",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT, frontend=State.UNKNOWN),
            "the backend in domain 0 is at InitWait and waits for the frontend in domain 3, which has not begun; "
            "is its driver running?",
        ),
        (
            replace(WELL, backend=State.INIT_WAIT),
            "the frontend in domain 3 is Connected and waits for the backend in domain 0, which is at InitWait",
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
def test_who_waits_for_what(seen: PairState, sentence: str) -> None:
    """One sentence: what is wrong if something is known to be, else who must move, and what to look at."""
    assert toolstack.stuck(seen, ID) == sentence


def test_a_script_that_failed_is_told_before_what_came_of_it() -> None:
    """The first cause, not the backend's report of it."""
    seen = replace(WELL, backend_error="5 hotplug failed", hotplug_error="the reason")
    assert toolstack.stuck(seen, ID) == "the hotplug script reports: the reason"


def test_a_driver_domain_is_named() -> None:
    """Both domains by their numbers."""
    seen = replace(WELL, backend=State.INITIALISING)
    assert toolstack.stuck(seen, ELSEWHERE).startswith("the backend in domain 7 has not begun")
