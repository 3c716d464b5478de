"""The bookkeeping of one client: ids, tokens, answers. No event loop anywhere."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from xenbusd import errors
from xenbusd.store.session import Session, error_for
from xenbusd.store.wire import HEADER, InvalidPayload, Op

Requests = Session[str, str]


def sent(session: Requests) -> list[tuple[int, int, int, bytes]]:
    """What would go out now, as (op, req_id, tx_id, payload)."""
    return [(*HEADER.unpack_from(packet)[:3], packet[HEADER.size :]) for packet in session.take()]


def packet(op: int, req_id: int, payload: bytes = b"OK\0", tx_id: int = 0) -> bytes:
    """What a store sends."""
    return HEADER.pack(op, req_id, tx_id, len(payload)) + payload


def watch(session: Requests, name: str, path: str) -> str:
    """Enlist a watch and ask for it; return its token."""
    token = session.enlist(name, path, path.encode() + b"\0")
    session.ask(f"watch {name}", Op.WATCH, path, f"{path}\0{token}\0".encode())
    return token


def test_a_request_goes_out_once_and_its_answer_comes_back_with_its_holder() -> None:
    """The first id is 1."""
    session = Requests()
    session.ask("mine", Op.READ, "/a", b"/a\0")
    assert sent(session) == [(Op.READ, 1, 0, b"/a\0")]
    assert sent(session) == []
    assert session.receive(packet(Op.READ, 1, b"value")) == ([("mine", None, b"value")], [])
    assert (session.pending, session.requests, session.fault) == (0, 1, None)


def test_answers_may_come_in_any_order() -> None:
    """They are matched by id."""
    session = Requests()
    for path in ("/a", "/b", "/c"):
        session.ask(path, Op.READ, path, path.encode() + b"\0")
    answers, _ = session.receive(b"".join(packet(Op.READ, number, b"%d" % number) for number in (3, 1, 2)))
    assert answers == [("/c", None, b"3"), ("/a", None, b"1"), ("/b", None, b"2")]


@pytest.mark.parametrize(
    ("op", "payload", "value"),
    [
        (Op.READ, b"", b""),
        (Op.READ, b"bytes \0\xff", b"bytes \0\xff"),
        (Op.WRITE, b"OK\0", None),
        (Op.RM, b"OK", None),
        (Op.DIRECTORY, b"", []),
        (Op.DIRECTORY, b"one\0two\0", ["one", "two"]),
        (Op.DIRECTORY_PART, b"17\0one\0\0", b"17\0one\0\0"),
        (Op.GET_PERMS, b"n3\0r0\0", ["n3", "r0"]),
        (Op.GET_DOMAIN_PATH, b"/local/domain/3\0", "/local/domain/3"),
        (Op.IS_DOMAIN_INTRODUCED, b"T\0", True),
        (Op.IS_DOMAIN_INTRODUCED, b"F\0", False),
        (Op.TRANSACTION_START, b"42\0", (42, 0)),
    ],
)
def test_an_answer_becomes_a_value_of_its_operation(op: Op, payload: bytes, value: object) -> None:
    """Each operation has its own form of answer."""
    session = Requests()
    session.ask("mine", op, "/a", b"/a\0")
    assert session.receive(packet(op, 1, payload)) == ([("mine", None, value)], [])


@pytest.mark.parametrize(
    ("op", "payload"),
    [(Op.WRITE, b"KO\0"), (Op.IS_DOMAIN_INTRODUCED, b"?\0"), (Op.TRANSACTION_START, b"many\0"), (Op.MKDIR, b"")],
)
def test_an_answer_that_does_not_parse_is_an_input_output_error(op: Op, payload: bytes) -> None:
    """Of that request alone: the frame was sound."""
    session = Requests()
    session.ask("mine", op, "/a", b"/a\0")
    [(holder, error, _)], _ = session.receive(packet(op, 1, payload))
    assert (holder, error and error.errno, session.fault) == ("mine", errno.EIO, None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ENOENT", errors.NodeNotFound),
        ("EACCES", errors.AccessDenied),
        ("EPERM", errors.AccessDenied),
        ("EEXIST", errors.NodeExists),
        ("ENOSPC", errors.QuotaExceeded),
        ("E2BIG", errors.QuotaExceeded),
        ("EDQUOT", errors.QuotaExceeded),
        ("EINVAL", errors.StoreError),
        ("EAGAIN", errors.StoreError),
        ("ENONSENSE", errors.StoreError),
    ],
)
def test_a_refusal_becomes_the_error_of_its_errno(name: str, kind: type[errors.StoreError]) -> None:
    """The error says what was asked of which path."""
    session = Requests()
    session.ask("mine", Op.WRITE, "/a", b"/a\0v")
    [(_, error, _)], _ = session.receive(packet(Op.ERROR, 1, name.encode() + b"\0"))
    assert type(error) is kind
    assert (error.op, error.path, error.errno) == ("WRITE", "/a", getattr(errno, name, errno.EIO))


def test_eagain_is_a_conflict_within_a_transaction_only() -> None:
    """Elsewhere nothing is there to be done again."""
    assert type(error_for(Op.TRANSACTION_END, "", errno.EAGAIN, tx_id=5)) is errors.TransactionConflict
    assert type(error_for(Op.READ, "/a", errno.EAGAIN)) is errors.StoreError


def test_an_oversize_request_is_refused_and_nothing_is_queued() -> None:
    """4096 bytes of payload pass, 4097 do not; fewer where the connection carries fewer."""
    session = Requests()
    session.ask("fits", Op.WRITE, "/a", bytes(4096))
    with pytest.raises(InvalidPayload, match=r"at most 4096 bytes.*has 4097"):
        session.ask("mine", Op.WRITE, "/a", bytes(4097))
    session.payload_max = 4080
    with pytest.raises(InvalidPayload, match=r"at most 4080 bytes.*has 4081"):
        session.ask("mine", Op.WRITE, "/a", bytes(4081))
    assert [len(request[3]) for request in sent(session)] == [4096]
    assert session.pending == 1


def test_request_ids_wrap_to_1_and_pass_over_those_in_flight() -> None:
    """0 is never used, and no id is used twice at a time."""
    session = Requests(first_id=0xFFFFFFFE)
    for name in "abc":
        session.ask(name, Op.READ, "/a", b"/a\0")
    assert [request[1] for request in sent(session)] == [0xFFFFFFFE, 0xFFFFFFFF, 1]
    session._next_id = 0xFFFFFFFE
    session.ask("d", Op.READ, "/a", b"/a\0")
    assert [request[1] for request in sent(session)] == [2]
    assert session.receive(packet(Op.READ, 2, b"")) == ([("d", None, b"")], [])


def test_an_answer_that_comes_twice_or_was_never_asked_for_is_dropped_and_counted() -> None:
    """The requests around it are answered as usual."""
    session = Requests()
    session.ask("a", Op.READ, "/a", b"/a\0")
    session.ask("b", Op.READ, "/b", b"/b\0")
    answers, _ = session.receive(
        packet(Op.READ, 1, b"1") + packet(Op.READ, 1, b"1") + packet(Op.WRITE, 77) + packet(Op.READ, 2, b"2")
    )
    assert answers == [("a", None, b"1"), ("b", None, b"2")]
    assert (session.strays, session.fault) == (2, None)


@pytest.mark.parametrize(
    ("garbage", "what"),
    [
        (packet(99, 5), "unknown type 99"),
        (HEADER.pack(Op.READ, 2, 0, 4097), "4097 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "bytes of payload, over 4096"),
        (packet(Op.WRITE, 2), "type 11 to READ"),
        (packet(99, 2), "type 99 to READ"),
    ],
)
def test_garbage_is_a_fault_and_what_came_before_it_counts(garbage: bytes, what: str) -> None:
    """Nothing after it is read; the request that it pretended to answer waits on."""
    session = Requests()
    session.ask("a", Op.READ, "/a", b"/a\0")
    session.ask("b", Op.READ, "/b", b"/b\0")
    answers, _ = session.receive(packet(Op.READ, 1, b"1") + garbage + packet(Op.READ, 2, b"2"))
    assert answers == [("a", None, b"1")]
    assert session.fault is not None
    assert what in session.fault
    assert session.pending == 1


def test_a_watch_event_comes_out_with_its_watch() -> None:
    """Tokens are short, constant in size and unique."""
    session = Requests()
    tokens = [session.enlist(name, "/a", b"/a\0") for name in ("first", "second")]
    assert len(set(tokens)) == 2
    assert {len(token) for token in tokens} == {6}
    _, events = session.receive(packet(Op.WATCH_EVENT, 0, f"/a/b\0{tokens[1]}\0".encode()))
    assert events == [("second", "/a/b")]


@pytest.mark.parametrize("payload", [b"/a\0unknown\0", b"/a", b"", b"\0", b"/a\0", b"\0\0\0\0"])
def test_an_event_of_an_unknown_token_is_dropped(payload: bytes) -> None:
    """Such events come late, after an UNWATCH, on every store."""
    session = Requests()
    session.enlist("mine", "/a", b"/a\0")
    assert session.receive(packet(Op.WATCH_EVENT, 0, payload)) == ([], [])
    assert (session.strays, session.fault) == (1, None)


def test_a_dismissed_watch_hears_nothing_and_is_dismissed_once() -> None:
    """The first time it returns what UNWATCH wants."""
    session = Requests()
    token = session.enlist("mine", "/a", b"/a\0")
    assert session.dismiss(token) == f"/a\0{token}\0".encode()
    assert session.dismiss(token) is None
    assert session.receive(packet(Op.WATCH_EVENT, 0, f"/a\0{token}\0".encode())) == ([], [])


def test_tokens_wrap_and_pass_over_those_alive() -> None:
    """No token is ever that of two watches."""
    session = Requests()
    session._next_token = 16**6 - 1
    assert [session.enlist(name, "/a", b"/a\0") for name in "abc"] == ["ffffff", "000000", "000001"]
    session._next_token = 0
    assert session.enlist("d", "/a", b"/a\0") == "000002"


def test_answers_without_an_id_go_to_the_oldest_watch_request() -> None:
    """Older kernels answer WATCH and UNWATCH themselves, with request id 0 (xenbus_dev_frontend.c)."""
    session = Requests()
    session.ask("read", Op.READ, "/a", b"/a\0")
    first = watch(session, "first", "/a")
    watch(session, "second", "/b")
    session.ask("unwatch", Op.UNWATCH, "/a", f"/a\0{first}\0".encode())
    answers, _ = session.receive(packet(Op.UNWATCH, 0) + packet(Op.WATCH, 0) + packet(Op.WATCH, 0))
    assert answers == [("unwatch", None, None), ("watch first", None, None), ("watch second", None, None)]
    assert session.receive(packet(Op.WATCH, 0)) == ([], [])
    assert (session.strays, session.pending) == (1, 1)


def test_a_packet_that_the_device_refused_is_answered_by_its_errno() -> None:
    """The kernel refuses a packet by the result of write()."""
    session = Requests()
    session.ask("mine", Op.UNWATCH, "/a", b"/a\0t\0")
    [refused] = session.take()
    [(holder, error, _)] = session.refused(refused, errno.ENOENT)
    assert (holder, type(error)) == ("mine", errors.NodeNotFound)
    assert session.refused(refused, errno.ENOENT) == []


def test_a_window_holds_requests_back_until_answers_come() -> None:
    """As many in flight as it says, in order, none lost."""
    session = Requests(window=2)
    for name in "abcde":
        session.ask(name, Op.READ, "/" + name, b"/" + name.encode() + b"\0")
    out, got = sent(session), []
    most = 0
    while out:
        most = max(most, len(out))
        answers, _ = session.receive(packet(Op.READ, out.pop(0)[1], b"v"))
        got += [holder for holder, _, _ in answers]
        out += sent(session)
    assert (most, got, session.pending) == (2, list("abcde"), 0)


def test_a_lost_connection_kills_transactions_and_keeps_the_rest() -> None:
    """What is within a transaction is handed back; what is outside goes out again, in order, with the same payload."""
    session = Requests()
    session.ask("read", Op.READ, "/a", b"/a\0")
    session.ask("in", Op.WRITE, "/b", b"/b\0v", 7)
    session.ask("write", Op.WRITE, "/c", b"/c\0v")
    session.take()
    session.receive(packet(Op.READ, 9, b"half of this")[:20])
    assert session.lost() == (["in"], [])
    assert (session.generation, session.pending) == (1, 2)
    session.ask("meanwhile", Op.RM, "/d", b"/d\0")
    session.resume(lambda name: f"again {name}")
    assert [(op, payload) for op, _, _, payload in sent(session)] == [
        (Op.READ, b"/a\0"),
        (Op.WRITE, b"/c\0v"),
        (Op.RM, b"/d\0"),
    ]
    assert session.requests == 4


def test_watches_are_registered_again_before_anything_else_and_once() -> None:
    """Also where the first registration has no answer yet; an UNWATCH needs none."""
    session = Requests()
    known = watch(session, "known", "/a")
    given_back = watch(session, "given back", "/b")
    session.receive(packet(Op.WATCH, 1) + packet(Op.WATCH, 2))
    session.ask("read", Op.READ, "/r", b"/r\0")
    asking = watch(session, "asking", "/c")
    left = watch(session, "left", "/d")
    session.ask("unwatch", Op.UNWATCH, "/b", session.dismiss(given_back) or b"")
    session.dismiss(left)
    dead, answers = session.lost()
    assert dead == []
    assert answers == [("watch left", None, None), ("unwatch", None, None)]
    session.resume(lambda name: f"again {name}")
    requests = sent(session)
    assert [(op, payload) for op, _, _, payload in requests] == [
        (Op.WATCH, f"/a\0{known}\0".encode()),
        (Op.READ, b"/r\0"),
        (Op.WATCH, f"/c\0{asking}\0".encode()),
    ]
    answers, events = session.receive(
        packet(Op.WATCH, requests[0][1]) + packet(Op.WATCH_EVENT, 0, f"/a\0{known}\0".encode())
    )
    assert (answers, events) == ([("again known", None, None)], [("known", "/a")])


def test_a_watch_given_back_while_disconnected_is_not_registered_again() -> None:
    """Not even where its registration was still asked for."""
    session = Requests()
    token = watch(session, "mine", "/a")
    session.lost()
    session.dismiss(token)
    session.resume(lambda name: f"again {name}")
    assert (sent(session), session.pending) == ([], 0)


def test_a_transaction_id_says_of_which_connection_it_is() -> None:
    """The holder may learn it when that connection has gone."""
    session = Requests()
    session.lost()
    session.ask("begin", Op.TRANSACTION_START, "", b"\0")
    assert session.receive(packet(Op.TRANSACTION_START, 1, b"9\0"))[0] == [("begin", None, (9, 1))]


def begin_again(session: Requests) -> tuple[list[str], list[Any]]:
    """Lose the connection and have another."""
    end = session.lost()
    session.resume(lambda name: f"again {name}")
    session.take()
    return end


def test_a_listing_that_ends_the_connection_twice_is_too_large() -> None:
    """oxenstored 4.17 answers so; asking for ever would not help, and the requests behind it go on."""
    session = Requests()
    session.ask("list", Op.DIRECTORY, "/big", b"/big\0")
    session.ask("other", Op.DIRECTORY, "/small", b"/small\0")
    session.take()
    assert begin_again(session) == ([], [])
    dead, [(holder, error, _)] = begin_again(session)
    assert (dead, holder, session.pending) == ([], "list", 1)
    assert type(error) is errors.QuotaExceeded
    assert (error.op, error.path, error.errno) == ("DIRECTORY", "/big", errno.E2BIG)


def test_only_the_oldest_request_is_suspected() -> None:
    """A store answers in order: it did not close because of a listing that stands behind a read."""
    session = Requests()
    session.ask("read", Op.READ, "/a", b"/a\0")
    session.ask("list", Op.DIRECTORY, "/a", b"/a\0")
    for _ in range(3):
        assert begin_again(session) == ([], [])
    assert session.pending == 2


def test_a_listing_that_was_answered_in_between_is_cleared() -> None:
    """Two restarts of a store a week apart do not prove that the listing was the cause."""
    session = Requests()
    session.ask("list", Op.DIRECTORY, "/a", b"/a\0")
    session.take()
    session.lost()
    session.resume(lambda name: name)
    [(_, req_id, _, _)] = sent(session)
    assert session.receive(packet(Op.DIRECTORY, req_id, b"x\0"))[0] == [("list", None, ["x"])]
    session.ask("list", Op.DIRECTORY, "/a", b"/a\0")
    session.take()
    assert begin_again(session) == ([], [])


def test_the_listing_that_ended_the_connection_is_known_across_transactions() -> None:
    """A transaction is done again under another id; the second time its listing gets the verdict."""
    session = Requests()
    session.ask("first", Op.DIRECTORY, "/big", b"/big\0", 3)
    assert begin_again(session) == (["first"], [])
    session.ask("second", Op.DIRECTORY, "/big", b"/big\0", 4)
    dead, [(holder, error, _)] = begin_again(session)
    assert (dead, holder, type(error)) == ([], "second", errors.QuotaExceeded)


def test_the_end_hands_everything_back() -> None:
    """Holders and watches, and nothing is left to send."""
    session = Requests(window=1)
    watch(session, "mine", "/a")
    session.ask("read", Op.READ, "/a", b"/a\0")
    assert session.end() == (["watch mine", "read"], ["mine"])
    assert (session.pending, session.take()) == (0, [])
