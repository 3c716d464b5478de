"""xenbusd.bus.state: the table of legal steps, and when a connection has ended."""

from __future__ import annotations

from itertools import pairwise

import pytest

from xenbusd.bus.state import (
    ACTIVE,
    OFFERED,
    TRANSITIONS,
    Seen,
    Side,
    State,
    backend_end_reason,
    frontend_end_reason,
    may_switch,
    parse_state,
)

UNKNOWN, INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED, RECONFIGURING, RECONFIGURED = State


def back(own: State, otherend: State, written: State, *, online: bool = True) -> str | None:
    """A backend's verdict on the states that it observes."""
    return backend_end_reason(Seen(own, otherend, online, None), written)


def front(own: State, otherend: State, written: State, *, online: bool = True) -> str | None:
    """A frontend's verdict on the states that it observes."""
    return frontend_end_reason(Seen(own, otherend, online, None), written)


def test_states_have_xens_numbers_and_names() -> None:
    """enum xenbus_state, and the names as the 2006 paper spells them."""
    assert [(int(state), state.title) for state in State] == [
        (0, "Unknown"),
        (1, "Initialising"),
        (2, "InitWait"),
        (3, "Initialised"),
        (4, "Connected"),
        (5, "Closing"),
        (6, "Closed"),
        (7, "Reconfiguring"),
        (8, "Reconfigured"),
    ]


@pytest.mark.parametrize("state", State)
def test_a_state_is_read_back(state: State) -> None:
    """A node holds a state in decimal."""
    assert parse_state(b"%d" % state) is state


@pytest.mark.parametrize(
    "value", [None, b"", b"9", b"-1", b"04", b" 4", b"4\n", b"4\0", b"four", b"\xff", b"44", b"4.0"]
)
def test_whatever_is_no_state_counts_as_unknown(value: bytes | None) -> None:
    """T9: an absent or unreadable state is 0, not an error."""
    assert parse_state(value) is UNKNOWN


def test_sides_are_opposite() -> None:
    """Each end's other end is the other one."""
    assert (Side.BACKEND.opposite, Side.FRONTEND.opposite) == (Side.FRONTEND, Side.BACKEND)


# -- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("state", State)
def test_staying_is_always_allowed(side: Side, state: State) -> None:
    """Writing what stands there is no step; `switch` leaves it out (T8)."""
    assert may_switch(side, state, state)


@pytest.mark.parametrize(
    ("side", "path"),
    [
        (Side.BACKEND, (1, 2, 4, 5, 6)),  # a life
        (Side.BACKEND, (1, 2, 4, 5, 6, 2, 4)),  # T51: and another
        (Side.BACKEND, (1, 2, 4, 6)),  # T50: the frontend skipped Closing
        (Side.BACKEND, (1, 5, 6)),  # T20: a failed probe
        (Side.BACKEND, (1, 2, 5, 6)),
        (Side.BACKEND, (1, 2, 4, 8, 4)),  # T46
        (Side.FRONTEND, (1, 3, 4, 5, 6, 1)),  # T51
        (Side.FRONTEND, (1, 4, 6)),  # T40, T50
        (Side.FRONTEND, (1, 7, 4)),  # T46
        (Side.FRONTEND, (1, 6)),
        (Side.FRONTEND, (1, 3, 5, 6)),
    ],
)
def test_the_ways_that_are_walked_are_legal(side: Side, path: tuple[int, ...]) -> None:
    """Every trace in docs/rules.md, of connecting and of closing."""
    for old, new in pairwise(path):
        assert may_switch(side, State(old), State(new)), f"{old} -> {new}"


@pytest.mark.parametrize("side", Side)
def test_closing_leads_to_closed_only(side: Side) -> None:
    """T50, T52: a toolstack's 5 is never overwritten by a step towards Connected."""
    assert TRANSITIONS[side][CLOSING] == {CLOSED}


def test_a_backend_leaves_closed_for_init_wait_only() -> None:
    """T51: a reconnect begins with fresh features, so at InitWait; a frontend's begins at Initialising."""
    assert TRANSITIONS[Side.BACKEND][CLOSED] == {INIT_WAIT}
    assert TRANSITIONS[Side.FRONTEND][CLOSED] == {INITIALISING}


@pytest.mark.parametrize("side", Side)
def test_nothing_comes_from_or_goes_to_unknown(side: Side) -> None:
    """T7: a directory that is gone is not written to, and nobody writes 0."""
    assert UNKNOWN not in TRANSITIONS[side]
    assert not any(UNKNOWN in after for after in TRANSITIONS[side].values())


@pytest.mark.parametrize("side", Side)
def test_every_state_that_can_be_reached_can_be_closed(side: Side) -> None:
    """From every state, Closed is one or two legal steps away."""
    for state in {state for after in TRANSITIONS[side].values() for state in after} - {CLOSED}:
        assert may_switch(side, state, CLOSED)


def test_each_end_keeps_to_its_own_states() -> None:
    """InitWait and Reconfigured are the backend's, Initialised is mostly and Reconfiguring only the frontend's."""
    written = {side: {state for after in TRANSITIONS[side].values() for state in after} for side in Side}
    assert not written[Side.FRONTEND] & {INIT_WAIT, RECONFIGURED}
    assert RECONFIGURING not in written[Side.BACKEND]


def test_active_frontends_are_qemus() -> None:
    """T52: 2, 3, 4 and 5 will close by themselves; 0, 1 and 6 or an absent directory will not."""
    assert {INIT_WAIT, INITIALISED, CONNECTED, CLOSING} <= ACTIVE
    assert not ACTIVE & {UNKNOWN, INITIALISING, CLOSED}
    assert sorted(OFFERED) == [INITIALISED, CONNECTED]


@pytest.mark.parametrize(
    ("status", "is_open"),
    [("connected", True), (None, False), ("", False), ("error", False), ("busy", False), ("connected\n", False)],
)
def test_the_hotplug_gate_opens_for_exactly_connected(status: str | None, is_open: bool) -> None:
    """T22: nine bytes; existence means nothing, for libxl makes the node empty."""
    assert Seen(INIT_WAIT, INITIALISED, True, status).gate_open is is_open


# -- a backend's end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [INITIALISING, INIT_WAIT, CONNECTED, CLOSING])
def test_a_backend_ends_when_its_directory_is_gone(written: State) -> None:
    """T9: removed."""
    assert back(UNKNOWN, CONNECTED, written) == "removed"


def test_a_backend_ends_when_its_directory_was_made_anew() -> None:
    """Initialising, when we had written more than that, is the next device of the same name."""
    assert back(INITIALISING, INITIALISING, CONNECTED) == "replaced"
    assert back(INITIALISING, INITIALISING, INITIALISING) is None


@pytest.mark.parametrize("written", [INITIALISING, INIT_WAIT, CONNECTED, CLOSING])
@pytest.mark.parametrize("otherend", [UNKNOWN, CLOSED])
def test_a_backend_ends_with_its_frontend(written: State, otherend: State) -> None:
    """T50, T57: a frontend that has Closed, or is gone without a word, ends it in every state."""
    assert back(written, otherend, written) is not None


@pytest.mark.parametrize("otherend", [INITIALISED, CONNECTED, CLOSING, RECONFIGURING])
@pytest.mark.parametrize("own", [CONNECTED, CLOSING])
def test_a_backend_serves_until_its_frontend_has_closed(own: State, otherend: State) -> None:
    """T50, T55: Closing on either or both sides is not the end: a disk that is in use still gets its requests done."""
    assert back(own, otherend, own) is None


def test_a_toolstacks_closing_does_not_end_an_active_connection() -> None:
    """T52, T55: the toolstack's 5 in our node; the frontend in use decides when."""
    assert back(CLOSING, CONNECTED, CONNECTED, online=False) is None


@pytest.mark.parametrize("otherend", [UNKNOWN, INITIALISING, CLOSED])
@pytest.mark.parametrize("written", [INITIALISING, INIT_WAIT, CONNECTED])
def test_a_toolstacks_closing_ends_it_where_no_frontend_is_active(written: State, otherend: State) -> None:
    """T52: nobody else would ever write Closed."""
    assert back(CLOSING, otherend, written, online=False) is not None


def test_a_toolstacks_closed_ends_it() -> None:
    """Whoever writes 6 into our node means it."""
    assert back(CLOSED, CONNECTED, CONNECTED) == "the toolstack closed it"


def test_a_frontend_that_began_again_ends_the_connection() -> None:
    """T51: back at Initialising its ring is dead, whether or not it said goodbye."""
    assert back(CONNECTED, INITIALISING, CONNECTED) == "the frontend began again"
    assert back(CLOSING, INITIALISING, CLOSING) is not None


@pytest.mark.parametrize("written", [INITIALISING, INIT_WAIT])
@pytest.mark.parametrize("otherend", [INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, RECONFIGURING])
def test_a_backend_that_waits_goes_on_waiting(written: State, otherend: State) -> None:
    """T2: before we are Connected any of the frontend's states may be seen, in any jump."""
    assert back(written, otherend, written) is None


@pytest.mark.parametrize("written", [INITIALISING, INIT_WAIT])
def test_a_frontend_that_closes_before_it_was_connected_ends_it(written: State) -> None:
    """There is no ring to serve: follow it at once."""
    assert back(written, CLOSING, written) == "the frontend closed"


@pytest.mark.parametrize("own", State)
@pytest.mark.parametrize("otherend", State)
@pytest.mark.parametrize("written", [INITIALISING, INIT_WAIT, CONNECTED, CLOSING])
def test_online_alone_never_ends_a_connection(own: State, otherend: State, written: State) -> None:
    """T54: `online` says whether to stay after Closed; it is not the state of the link."""
    assert back(own, otherend, written, online=True) == back(own, otherend, written, online=False)
    assert front(own, otherend, written, online=True) == front(own, otherend, written, online=False)


# -- a frontend's end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [INITIALISING, INITIALISED, CONNECTED])
def test_a_frontend_ends_when_a_directory_is_gone(written: State) -> None:
    """Its own, or the backend's."""
    assert front(UNKNOWN, CONNECTED, written) == "removed"
    assert front(written, UNKNOWN, written) == "the backend is gone"


def test_a_frontend_ends_when_its_directory_was_made_anew() -> None:
    """As a backend's."""
    assert front(INITIALISING, INIT_WAIT, CONNECTED) == "replaced"


@pytest.mark.parametrize("written", [INITIALISED, CONNECTED, CLOSING])
@pytest.mark.parametrize("otherend", [CLOSING, CLOSED])
def test_a_frontend_ends_with_its_backend(written: State, otherend: State) -> None:
    """T52: a backend's Closing asks us to close; after its Closed nobody serves the ring."""
    assert front(written, otherend, written) == "the backend closed"


@pytest.mark.parametrize("otherend", [INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED])
def test_a_frontend_that_has_offered_nothing_waits(otherend: State) -> None:
    """T41: a backend that is still closing its last connection will reach InitWait."""
    assert front(INITIALISING, otherend, INITIALISING) is None


@pytest.mark.parametrize("otherend", [INITIALISING, INIT_WAIT])
def test_a_backend_that_began_again_ends_the_connection(otherend: State) -> None:
    """Our ring is no longer mapped there."""
    assert front(CONNECTED, otherend, CONNECTED) == "the backend began again"


@pytest.mark.parametrize("otherend", [INIT_WAIT, INITIALISED, CONNECTED])
def test_a_frontend_that_has_offered_waits_for_connected(otherend: State) -> None:
    """Between Initialised and Connected the backend is on its way."""
    assert front(INITIALISED, otherend, INITIALISED) is None


@pytest.mark.parametrize("otherend", [INITIALISED, CONNECTED, RECONFIGURED])
def test_a_frontend_stays_connected_with_a_backend_that_is(otherend: State) -> None:
    """T46: Reconfigured is Connected too."""
    assert front(CONNECTED, otherend, CONNECTED) is None
