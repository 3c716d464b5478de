"""A packet stream says the same thing however it is cut, and request ids never meet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenbusd.errors import NodeNotFound
from xenbusd.store.session import Session
from xenbusd.store.wire import HEADER, U32, Op

Step = tuple[str, bytes]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.binary(max_size=60)),
        st.tuples(st.just("large"), st.binary(min_size=1, max_size=1).map(lambda byte: byte * 4096)),
        st.tuples(st.just("missing"), st.just(b"ENOENT\0")),
        st.tuples(st.just("event"), st.sampled_from([b"/a", b"/a/b/c", b"/a/very/long/path" * 20])),
        st.tuples(st.just("stray"), st.binary(max_size=20)),
    ),
    max_size=20,
)


def conversation(said: list[Step]) -> tuple[Session[int, str], bytes]:
    """A session with its requests asked, and what the store says to them."""
    session: Session[int, str] = Session()
    token = session.enlist("watch", "/a", b"/a\0").encode()
    stream = bytearray()
    for number, (kind, payload) in enumerate(said):
        if kind == "event":
            body = payload + b"\0" + token + b"\0"
            stream += HEADER.pack(Op.WATCH_EVENT, 0, 0, len(body)) + body
        elif kind == "stray":
            stream += HEADER.pack(Op.READ, U32, 0, len(payload)) + payload
        else:
            session.ask(number, Op.READ, "/a", b"/a\0")
            req_id = HEADER.unpack_from(session.take()[0])[1]
            op = Op.ERROR if kind == "missing" else Op.READ
            stream += HEADER.pack(op, req_id, 0, len(payload)) + payload
    return session, bytes(stream)


@given(said=steps, data=st.data())
def test_any_chunking_of_a_stream_says_the_same(said: list[Step], data: st.DataObject) -> None:
    """Every answer and every event comes out once, in order, wherever the bytes are cut."""
    session, stream = conversation(said)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=40)))
    answers, events = [], []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        some_answers, some_events = session.receive(stream[start:stop])
        answers += some_answers
        events += some_events
    assert [(holder, type(error) if error else value) for holder, error, value in answers] == [
        (number, NodeNotFound if kind == "missing" else payload)
        for number, (kind, payload) in enumerate(said)
        if kind in ("read", "large", "missing")
    ]
    assert events == [("watch", payload.decode()) for kind, payload in said if kind == "event"]
    assert session.strays == sum(kind == "stray" for kind, _ in said)
    assert (session.fault, session.pending) == (None, 0)


@given(said=steps)
def test_one_byte_at_a_time_says_the_same(said: list[Step]) -> None:
    """The slowest store there can be."""
    session, stream = conversation(said)
    got = [session.receive(stream[at : at + 1]) for at in range(len(stream))]
    at_once_session, _ = conversation(said)
    answers, events = at_once_session.receive(stream)
    assert [(h, type(e), v) for some, _ in got for h, e, v in some] == [(h, type(e), v) for h, e, v in answers]
    assert [event for _, some in got for event in some] == events


@given(chunks=st.lists(st.binary(max_size=64), max_size=30))
def test_any_bytes_neither_break_it_nor_make_it_grow(chunks: list[bytes]) -> None:
    """It returns no answer that was not asked for, and keeps at most one packet of unparsed bytes."""
    session: Session[int, str] = Session()
    session.ask(0, Op.READ, "/a", b"/a\0")
    for chunk in chunks:
        answers, events = session.receive(chunk)
        assert len(answers) <= 1
        assert events == []
        assert len(session._rest) < HEADER.size + 4096


@given(first=st.integers(U32 - 5, U32), answered=st.lists(st.booleans(), min_size=1, max_size=40))
def test_ids_in_flight_are_unique_across_the_wrap(first: int, answered: list[bool]) -> None:
    """Never 0, never over 32 bits, never one that still waits for its answer; each answer reaches its own holder."""
    session: Session[int, str] = Session(first_id=first)
    in_flight: dict[int, int] = {}
    for number, answer in enumerate(answered):
        session.ask(number, Op.READ, "/a", b"/a\0")
        req_id = HEADER.unpack_from(session.take()[0])[1]
        assert 1 <= req_id <= U32
        assert req_id not in in_flight
        in_flight[req_id] = number
        if answer:
            req_id, holder = in_flight.popitem()
            assert session.receive(HEADER.pack(Op.READ, req_id, 0, 0))[0] == [(holder, None, b"")]
        if number % 7 == 0:
            session._next_id = first
