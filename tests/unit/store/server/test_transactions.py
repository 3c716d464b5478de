"""Transactions: their view of the tree, and which of them conflict."""

from __future__ import annotations

import pytest

from tests.doubles.asker import Asker
from xenbusd.store.server.quotas import Quotas
from xenbusd.store.server.state import State
from xenbusd.store.wire import Op


@pytest.fixture
def one() -> Asker:
    """A caller in domain 0."""
    asker = Asker(State(Quotas()))
    asker.ask(Op.WRITE, "/dir/x", "1")
    return asker


@pytest.fixture
def other(one: Asker) -> Asker:
    """Another one of the same store."""
    return Asker(one.state)


def test_what_a_transaction_writes_is_its_own_until_the_commit(one: Asker, other: Asker) -> None:
    """Nobody else sees a value, a new node or a removal before; everybody does after."""
    one.ask(Op.WRITE, "/dir/gone", "")
    tx = one.start()
    one.ask(Op.WRITE, "/dir/x", "2", tx=tx)
    one.ask(Op.WRITE, "/new/y", "3", tx=tx)
    one.ask(Op.RM, "/dir/gone", tx=tx)
    assert one.ask(Op.READ, "/dir/x", tx=tx) == "2"
    assert one.names("/dir", tx=tx) == ["x"]
    assert one.ask(Op.READ, "/dir/x") == other.ask(Op.READ, "/dir/x") == "1"
    assert other.refused(Op.READ, "/new/y") == "ENOENT"
    assert other.names("/dir") == ["x", "gone"]
    one.commit(tx)
    assert other.ask(Op.READ, "/dir/x") == "2"
    assert other.ask(Op.READ, "/new/y") == "3"
    assert other.names("/dir") == ["x"]


def test_an_aborted_transaction_leaves_nothing(one: Asker) -> None:
    """F: as if it had not been."""
    tx = one.start()
    one.ask(Op.WRITE, "/dir/x", "2", tx=tx)
    one.ask(Op.RM, "/tool", tx=tx)
    one.ask(Op.TRANSACTION_END, "F", tx=tx)
    assert one.ask(Op.READ, "/dir/x") == "1"
    assert one.names("/") == ["tool", "dir"]
    assert one.refused(Op.TRANSACTION_END, "T", tx=tx) == "ENOENT"


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (Op.READ, ["/dir/x"]),
        (Op.GET_PERMS, ["/dir/x"]),
        (Op.DIRECTORY, ["/dir"]),
        (Op.DIRECTORY_PART, ["/dir", "0"]),
    ],
)
def test_reads_are_repeatable(one: Asker, other: Asker, op: Op, words: list[str]) -> None:
    """What has been read once stays so within the transaction."""
    tx = one.start()
    first = one.ask(op, *words, tx=tx)
    other.ask(Op.WRITE, "/dir/x", "2")
    other.ask(Op.SET_PERMS, "/dir/x", "n7")
    other.ask(Op.WRITE, "/dir/new", "")
    other.ask(Op.RM, "/dir/x")
    assert one.ask(op, *words, tx=tx) == first
    assert one.refused(Op.TRANSACTION_END, "T", tx=tx) == "EAGAIN"


@pytest.mark.parametrize(
    ("op", "words", "change", "args"),
    [
        (Op.READ, ["/dir/x"], Op.WRITE, ["/dir/x", "2"]),
        (Op.READ, ["/dir/x"], Op.WRITE, ["/dir/x", "1"]),
        (Op.READ, ["/dir/x"], Op.RM, ["/dir/x"]),
        (Op.READ, ["/dir/x"], Op.RM, ["/dir"]),
        (Op.GET_PERMS, ["/dir/x"], Op.SET_PERMS, ["/dir/x", "n0", "r3"]),
        (Op.DIRECTORY, ["/dir"], Op.WRITE, ["/dir/y", ""]),
        (Op.DIRECTORY, ["/dir/x"], Op.WRITE, ["/dir/x/y", ""]),
        (Op.DIRECTORY, ["/dir"], Op.RM, ["/dir/x"]),
        (Op.DIRECTORY_PART, ["/dir", "0"], Op.RM, ["/dir/x"]),
    ],
)
def test_what_was_read_and_has_changed_conflicts(
    one: Asker, other: Asker, op: Op, words: list[str], change: Op, args: list[str]
) -> None:
    """A value, permissions, a listing: EAGAIN, and nothing of the transaction happens."""
    tx = one.start()
    one.ask(op, *words, tx=tx)
    one.ask(Op.WRITE, "/mark", "", tx=tx)
    other.ask(change, *args)
    assert one.refused(Op.TRANSACTION_END, "T", tx=tx) == "EAGAIN"
    assert one.refused(Op.READ, "/mark") == "ENOENT"
    again = one.start()
    one.ask(Op.WRITE, "/mark", "", tx=again)
    one.commit(again)


def test_a_missing_node_counts_as_read(one: Asker, other: Asker) -> None:
    """A transaction that got ENOENT conflicts with one that makes the node."""
    tx = one.start()
    assert one.refused(Op.READ, "/dir/absent", tx=tx) == "ENOENT"
    other.ask(Op.WRITE, "/dir/absent", "")
    assert one.refused(Op.TRANSACTION_END, "T", tx=tx) == "EAGAIN"


def test_a_read_only_transaction_of_what_stays_commits(one: Asker, other: Asker) -> None:
    """Changes elsewhere, and of children where only the value was read, are no conflict."""
    tx = one.start()
    one.ask(Op.READ, "/dir", tx=tx)
    one.ask(Op.READ, "/dir/x", tx=tx)
    other.ask(Op.WRITE, "/dir/y", "")
    other.ask(Op.WRITE, "/elsewhere", "")
    one.commit(tx)


def test_writers_of_the_same_node_do_not_conflict_unless_they_read_it(one: Asker, other: Asker) -> None:
    """The later commit wins, as in oxenstored."""
    first, second = one.start(), other.start()
    one.ask(Op.WRITE, "/dir/x", "one", tx=first)
    other.ask(Op.WRITE, "/dir/x", "other", tx=second)
    one.commit(first)
    other.commit(second)
    assert one.ask(Op.READ, "/dir/x") == "other"


def test_many_devices_are_made_at_once_in_one_directory(one: Asker, other: Asker) -> None:
    """Two transactions that fill a directory, one of which makes it, both commit and both are there."""
    first, second = one.start(), other.start()
    for asker, tx, devid in ((one, first, "51712"), (other, second, "51728")):
        asker.ask(Op.MKDIR, f"/backend/vbd/3/{devid}", tx=tx)
        asker.ask(Op.SET_PERMS, f"/backend/vbd/3/{devid}", "n0", "r3", tx=tx)
        asker.ask(Op.WRITE, f"/backend/vbd/3/{devid}/state", "1", tx=tx)
    other.commit(second)
    one.commit(first)
    assert one.names("/backend/vbd/3") == ["51728", "51712"]
    for devid in ("51712", "51728"):
        assert one.ask(Op.GET_PERMS, f"/backend/vbd/3/{devid}") == "n0\0r3\0"
        assert one.ask(Op.READ, f"/backend/vbd/3/{devid}/state") == "1"


def test_a_transaction_that_lists_the_directory_conflicts(one: Asker, other: Asker) -> None:
    """The one that has listed conflicts; the one that has not does not."""
    first, second = one.start(), other.start()
    one.names("/dir", tx=first)
    one.ask(Op.WRITE, "/dir/one", "", tx=first)
    other.ask(Op.WRITE, "/dir/other", "", tx=second)
    other.commit(second)
    assert one.refused(Op.TRANSACTION_END, "T", tx=first) == "EAGAIN"


def test_what_was_read_after_an_edit_must_come_out_the_same(one: Asker, other: Asker) -> None:
    """It listed a directory of its own making as empty; with another's child in it the commit would be a lie."""
    tx = one.start()
    one.ask(Op.MKDIR, "/new", tx=tx)
    assert one.names("/new", tx=tx) == []
    other.ask(Op.WRITE, "/new/child", "")
    assert one.names("/new", tx=tx) == [], "another's child does not show below a directory made here"
    assert one.refused(Op.READ, "/new/child", tx=tx) == "ENOENT"
    assert one.refused(Op.TRANSACTION_END, "T", tx=tx) == "EAGAIN"


def test_a_refusal_is_an_answer_that_must_still_be_right(one: Asker, other: Asker) -> None:
    """RM told ENOENT because the parent had gone; doing the WRITE again would bring the parent back."""
    tx = one.start()
    one.ask(Op.WRITE, "/dir/x", "2", tx=tx)
    other.ask(Op.RM, "/dir")
    assert one.refused(Op.RM, "/dir/y", tx=tx) == "ENOENT"
    assert one.refused(Op.TRANSACTION_END, "T", tx=tx) == "EAGAIN"


def test_a_node_whose_parent_went_behind_its_back_can_be_removed(one: Asker, other: Asker) -> None:
    """The transaction still has the node; nothing breaks, here or at the commit."""
    tx = one.start()
    one.ask(Op.WRITE, "/dir/x", "2", tx=tx)
    other.ask(Op.RM, "/dir")
    one.ask(Op.RM, "/dir/x", tx=tx)
    one.commit(tx)
    assert one.names("/dir") == []


def test_an_edit_that_is_no_longer_possible_conflicts(one: Asker, other: Asker) -> None:
    """SET_PERMS of a node that somebody has removed meanwhile."""
    tx = one.start()
    one.ask(Op.WRITE, "/mark", "", tx=tx)
    one.ask(Op.SET_PERMS, "/dir/x", "n0", "r3", tx=tx)
    other.ask(Op.RM, "/dir/x")
    assert one.refused(Op.TRANSACTION_END, "T", tx=tx) == "EAGAIN"
    assert one.refused(Op.READ, "/mark") == "ENOENT"


def test_a_removed_directory_takes_along_what_came_meanwhile(one: Asker, other: Asker) -> None:
    """No node is ever without its parent."""
    tx = one.start()
    one.ask(Op.RM, "/dir", tx=tx)
    other.ask(Op.WRITE, "/dir/x/deep/new", "")
    one.commit(tx)
    assert one.refused(Op.READ, "/dir/x/deep/new") == "ENOENT"
    assert [path for path in one.state.tree.nodes if path.startswith(b"/dir")] == []


def test_a_directory_made_anew_is_empty(one: Asker) -> None:
    """Removed and made again in one transaction: what the tree had below it does not show through."""
    tx = one.start()
    one.ask(Op.RM, "/dir", tx=tx)
    one.ask(Op.WRITE, "/dir/y", "", tx=tx)
    assert one.names("/dir", tx=tx) == ["y"]
    assert one.refused(Op.READ, "/dir/x", tx=tx) == "ENOENT"
    one.commit(tx)
    assert one.names("/dir") == ["y"]
    assert one.refused(Op.READ, "/dir/x") == "ENOENT"
    assert one.state.tree.children_bytes(b"/dir") == 2


def test_made_and_removed_again_leaves_nothing(one: Asker) -> None:
    """Not even a name in the parent's listing."""
    tx = one.start()
    one.ask(Op.WRITE, "/dir/y/z", "", tx=tx)
    one.ask(Op.RM, "/dir/y", tx=tx)
    one.commit(tx)
    assert one.names("/dir") == ["x"]
    assert one.state.tree.children_bytes(b"/dir") == 2


def test_events_come_at_the_commit_in_the_order_of_the_edits(one: Asker, other: Asker) -> None:
    """Nothing before; nothing at all of an aborted one."""
    other.ask(Op.WATCH, "/", "t")
    other.events()
    aborted, tx = one.start(), one.start()
    one.ask(Op.WRITE, "/never", "", tx=aborted)
    one.ask(Op.WRITE, "/dir/b", "", tx=tx)
    one.ask(Op.RM, "/dir/x", tx=tx)
    one.ask(Op.MKDIR, "/dir/a", tx=tx)
    assert other.events() == []
    one.ask(Op.TRANSACTION_END, "F", tx=aborted)
    assert other.events() == []
    one.commit(tx)
    assert other.events() == [("/dir/b", "t"), ("/dir/x", "t"), ("/dir/a", "t")]


def test_a_transaction_cannot_be_begun_within_one(one: Asker) -> None:
    """EBUSY, as xenstored says."""
    tx = one.start()
    assert one.refused(Op.TRANSACTION_START, "", tx=tx) == "EBUSY"


def test_transactions_belong_to_their_connection(one: Asker, other: Asker) -> None:
    """Ids count per connection; another one's is unknown."""
    first = one.start()
    assert first != 0
    assert other.refused(Op.READ, "/dir/x", tx=first) == "ENOENT"
    assert other.refused(Op.TRANSACTION_END, "T", tx=first) == "ENOENT"
    assert other.refused(Op.TRANSACTION_END, "T") == "ENOENT"
    assert one.refused(Op.TRANSACTION_END, "X", tx=first) == "EINVAL"
    one.commit(first)


def test_the_cost_is_that_of_the_transaction_and_not_of_the_store(one: Asker) -> None:
    """A write below a directory of many touches the node and its parent only."""
    for number in range(500):
        one.ask(Op.WRITE, f"/many/{number}", "")
    tx = one.start()
    one.ask(Op.WRITE, "/many/new", "", tx=tx)
    assert len(one.caller.transactions[tx]._entries) == 2


def test_a_guest_s_transaction_touches_so_many_nodes() -> None:
    """ENOSPC beyond the quota, whether it reads or writes; and as many edits."""
    state = State(Quotas(transaction_nodes=4))
    dom0, guest = Asker(state), Asker(state, 3)
    dom0.ask(Op.WRITE, "/g", "")
    dom0.ask(Op.SET_PERMS, "/g", "n3")
    tx = guest.start()
    for name in ("a", "b", "c"):
        guest.ask(Op.WRITE, f"/g/{name}", "", tx=tx)
    assert guest.refused(Op.READ, "/g/d", tx=tx) == "ENOSPC"
    guest.ask(Op.WRITE, "/g/a", "", tx=tx)
    assert guest.refused(Op.WRITE, "/g/a", "", tx=tx) == "ENOSPC"
    guest.commit(tx)
    assert guest.names("/g") == ["a", "b", "c"]


def test_two_transactions_together_cannot_pass_the_quota_of_nodes() -> None:
    """What was within the quota when it was done need not be so at the commit."""
    state = State(Quotas(nodes=3))
    dom0, guest = Asker(state), Asker(state, 3)
    dom0.ask(Op.WRITE, "/g", "")
    dom0.ask(Op.SET_PERMS, "/g", "n3")
    first, second = guest.start(), guest.start()
    for tx, names in ((first, "ab"), (second, "cd")):
        for name in names:
            guest.ask(Op.WRITE, f"/g/{name}", "", tx=tx)
    guest.commit(first)
    assert guest.refused(Op.TRANSACTION_END, "T", tx=second) == "ENOSPC"
    assert state.tree.owned_by(3) == 3
