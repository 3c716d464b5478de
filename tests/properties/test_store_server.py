"""The store against a simple model: transactions are serial, events are complete, the books are balanced."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.doubles.asker import Asker
from xenbusd.store.server.connection import Connection
from xenbusd.store.server.quotas import Quotas, Refusal
from xenbusd.store.server.state import State
from xenbusd.store.server.tree import parent
from xenbusd.store.wire import HEADER, Op, pack

PATHS = ["/x", "/x/a", "/x/b", "/x/a/c", "/x/a/d", "/y", "/y/a"]
VALUES = ["", "1", "2"]
PERMS = ["n0", "r0", "n3"]

Nodes = dict[str, tuple[str, str]]
"""path -> (value, permissions): all that there is to a small store."""
Request = tuple[Op, tuple[str, ...]]


def above(path: str) -> str:
    """The parent, as text."""
    return parent(path.encode()).decode()


def below(nodes: Nodes, path: str) -> list[str]:
    """A node and everything below it."""
    return [each for each in nodes if each == path or each.startswith(path.rstrip("/") + "/")]


def model(nodes: Nodes, request: Request) -> str:
    """Do one request in the plainest way. A listing comes sorted."""
    op, (path, *args) = request
    there = nodes.get(path)
    if op == Op.WRITE or (op == Op.MKDIR and there is None):
        chain = [path]
        while above(chain[-1]) not in nodes:
            chain.append(above(chain[-1]))
        perms = nodes[above(chain[-1])][1]
        for each in chain:
            nodes.setdefault(each, ("", perms))
        if op == Op.WRITE:
            nodes[path] = (args[0], nodes[path][1])
        return "OK\0"
    if op == Op.MKDIR:
        return "OK\0"
    if op == Op.RM:
        if there is None:
            return "OK\0" if above(path) in nodes else "ENOENT"
        for each in below(nodes, path):
            del nodes[each]
        return "OK\0"
    if there is None:
        return "ENOENT"
    if op == Op.READ:
        return there[0]
    if op == Op.GET_PERMS:
        return f"{there[1]}\0"
    if op == Op.SET_PERMS:
        nodes[path] = (there[0], args[0])
        return "OK\0"
    assert op == Op.DIRECTORY
    return " ".join(sorted(each.rpartition("/")[2] for each in nodes if each != "/" and above(each) == path))


def real(asker: Asker, request: Request, tx: int = 0) -> str:
    """Do the same request in the store."""
    op, words = request
    try:
        if op == Op.DIRECTORY:
            return " ".join(sorted(asker.names(words[0], tx=tx)))
        return asker.ask(op, *words, tx=tx)
    except Refusal as refusal:
        return str(refusal)


paths = st.sampled_from(PATHS)
edits = st.one_of(
    st.tuples(st.just(Op.WRITE), st.tuples(paths, st.sampled_from(VALUES))),
    st.tuples(st.just(Op.MKDIR), st.tuples(paths)),
    st.tuples(st.just(Op.RM), st.tuples(paths)),
    st.tuples(st.just(Op.SET_PERMS), st.tuples(paths, st.sampled_from(PERMS))),
)
reads = st.tuples(st.sampled_from([Op.READ, Op.DIRECTORY, Op.GET_PERMS]), st.tuples(st.sampled_from([*PATHS, "/"])))
requests = st.one_of(edits, reads)


class Open:
    """An open transaction: what was asked in it, with the answers, and what the model holds as it has it."""

    def __init__(self, tx: int, nodes: Nodes) -> None:
        self.tx = tx
        self.log: list[tuple[Request, str]] = []
        self.disturbed = False
        self.private = dict(nodes)


class StoreMachine(RuleBasedStateMachine):
    """Domain 0 edits directly and in up to three transactions at once, while every node is watched."""

    def __init__(self) -> None:
        super().__init__()
        state = State(Quotas())
        self.asker = Asker(state)
        self.asker.ask(Op.RM, "/tool")
        self.nodes: Nodes = {"/": ("", "n0")}
        self.open: list[Open] = []
        self.watcher = Asker(state)
        for path in ["/", *PATHS]:
            self.watcher.ask(Op.WATCH, path, path)
        self.watcher.events()

    def changed(self, before: Nodes, touched: bool) -> None:
        """Check the events of one step, and note that open transactions were disturbed."""
        heard = self.watcher.events()
        changed = {path for path in before.keys() | self.nodes.keys() if before.get(path) != self.nodes.get(path)}
        for path in changed:
            assert any(
                token == "/" and (each == path or below({path: ("", "")}, each) or below({each: ("", "")}, path))
                for each, token in heard
            ), f"no event for {path}: {heard}"
            assert path == "/" or any(token == path for _, token in heard), f"its own watch got no event for {path}"
        for each, token in heard:
            assert below({each: ("", "")}, token), "an event of a path that is not below the watch"
        if not touched:
            assert heard == []
        if heard:
            for other in self.open:
                other.disturbed = True

    @rule(request=requests)
    def direct(self, request: Request) -> None:
        """Outside of any transaction the store does what the model does."""
        before = dict(self.nodes)
        assert real(self.asker, request) == model(self.nodes, request)
        self.changed(before, request[0] in (Op.WRITE, Op.MKDIR, Op.RM, Op.SET_PERMS))

    @precondition(lambda self: len(self.open) < 3)
    @rule()
    def start(self) -> None:
        """Begin a transaction."""
        self.open.append(Open(self.asker.start(), self.nodes))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), request=requests)
    def inside(self, data: Any, request: Request) -> None:
        """Nobody hears of it; undisturbed, it is what the model does to a copy."""
        which = data.draw(st.sampled_from(self.open))
        answer = real(self.asker, request, which.tx)
        which.log.append((request, answer))
        expected = model(which.private, request)
        if not which.disturbed:
            assert answer == expected
        self.changed(self.nodes, False)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), commit=st.booleans())
    def end(self, data: Any, commit: bool) -> None:
        """A commit is as if it had all been done at this moment, or is refused; but never without a reason."""
        which = data.draw(st.sampled_from(self.open))
        self.open.remove(which)
        before = dict(self.nodes)
        verdict = real(self.asker, (Op.TRANSACTION_END, ("T" if commit else "F",)), which.tx)
        if verdict == "EAGAIN":
            assert commit
            assert which.disturbed, "nothing else had happened"
            surely = all(request[0] in (Op.WRITE, Op.MKDIR) for request, _ in which.log)
            assert not surely, "writes alone do not conflict"
        else:
            assert verdict == "OK\0"
            for request, answer in which.log if commit else ():
                assert model(self.nodes, request) == answer
        self.changed(before, commit)

    @invariant()
    def the_store_is_the_model(self) -> None:
        """Every node, its value, its permissions and its children; and the books."""
        tree = self.asker.state.tree
        nodes = {path.decode(): node for path, node in tree.nodes.items() if path.startswith(b"/")}
        assert {
            path: (node.value.decode(), node.perms.text[:-1].decode()) for path, node in nodes.items()
        } == self.nodes
        owned: dict[int, int] = {}
        for path, node in tree.nodes.items():
            owned[node.perms.owner] = owned.get(node.perms.owner, 0) + 1
            names = {
                each.encode().rpartition(b"/")[2] for each in nodes if each != "/" and above(each) == path.decode()
            }
            assert set(tree.listing(path)[0]) == names
            assert tree.children_bytes(path) == sum(len(name) + 1 for name in names)
        assert tree.owned == owned


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(requests, st.booleans()), max_size=60))
def test_a_guest_never_passes_its_quotas(script: list[tuple[Request, bool]]) -> None:
    """Whatever it does, directly or in transactions that overlap, it owns so many nodes and no node is too big."""
    state = State(Quotas(nodes=3, node_bytes=44, transactions=2))
    dom0, guest = Asker(state), Asker(state, 3)
    dom0.ask(Op.SET_PERMS, "/", "b0")
    open_: list[int] = []
    for (op, words), inside in script:
        if inside and op == Op.DIRECTORY and len(open_) < 2:
            open_.append(guest.start())
        elif inside and op == Op.GET_PERMS and open_:
            real(guest, (Op.TRANSACTION_END, ("T",)), open_.pop(0))
        else:
            tx = open_[-1] if inside and open_ else 0
            real(guest, (op, ("n3",) if op == Op.SET_PERMS and not words else words), tx)
        assert state.tree.owned_by(3) <= 3
        for node in state.tree.nodes.values():
            if node.perms.owner == 3:
                assert 24 + 8 * node.perms.count + len(node.value) < 44
        assert guest.caller.domain.transactions == len(open_)


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.out = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        """Keep it."""
        assert not self.closed
        self.out += data

    def close(self) -> None:
        """As the transport of a peer that reads."""
        self.closed = True

    abort = close

    def set_write_buffer_limits(self, high: int) -> None:
        """Never full."""


def answers(domid: int, chunks: list[bytes]) -> tuple[bytes, bool]:
    """Everything that a new store says to these bytes, and whether it closed the connection."""

    async def run() -> tuple[bytes, bool]:
        state = State(Quotas())
        setup = Asker(state)
        setup.ask(Op.SET_PERMS, "/", "b0")
        state.leave(setup.caller)
        connection, wire = Connection(state, state.domains.get(domid)), Wire()
        connection.connection_made(wire)  # type: ignore[arg-type]
        for chunk in chunks:
            if not wire.closed:
                connection.data_received(chunk)
        connection.connection_lost(None)
        assert not state.callers(state.domains.get(domid))
        assert not state.watches
        return wire.out, wire.closed

    return asyncio.run(run())


def without_events(data: bytes) -> list[bytes]:
    """The answers alone, packet by packet: how many equal events are merged does depend on the chunks."""
    packets = []
    while data:
        size = HEADER.size + HEADER.unpack_from(data)[3]
        packets.append(data[:size])
        data = data[size:]
    return [each for each in packets if HEADER.unpack_from(each)[0] != Op.WATCH_EVENT]


packets = st.builds(
    pack,
    st.one_of(st.sampled_from([*Op]), st.integers(0, 2**32 - 1)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.one_of(
        st.binary(max_size=40),
        st.lists(
            st.sampled_from([b"/", b"/x", b"/x/a", b"x", b"@releaseDomain", b"n0", b"T", b"0", b"3", b""]), max_size=3
        ).map(lambda words: b"".join(word + b"\0" for word in words)),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([0, 3]), st.lists(packets, max_size=30), st.binary(max_size=20), st.data())
def test_the_answers_do_not_depend_on_how_the_bytes_arrive(
    domid: int, stream: list[bytes], rest: bytes, data: Any
) -> None:
    """Any packets, then any bytes, in any pieces: the same answers, at most one for each packet, and no exception."""
    whole = b"".join(stream) + rest
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    together, closed = answers(domid, [whole])
    apart, closed_too = answers(domid, pieces)
    assert closed == closed_too
    assert without_events(together) == without_events(apart)
    assert len(without_events(together)) <= len(stream) + 1
    if not closed:
        ids = [HEADER.unpack_from(each)[1] for each in without_events(together)]
        assert ids[: len(stream)] == [HEADER.unpack_from(each)[1] for each in stream]
