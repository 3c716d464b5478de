"""Nodes, permissions and quotas, as a domain meets them."""

from __future__ import annotations

import pytest

from tests.doubles.asker import Asker
from xenbusd.store.server.quotas import Quotas
from xenbusd.store.server.state import State
from xenbusd.store.wire import Op


def store(quotas: Quotas | None = None) -> tuple[Asker, Asker]:
    """A caller in domain 0, and one in domain 3, which owns /g and may read /shared."""
    state = State(quotas or Quotas())
    dom0, guest = Asker(state), Asker(state, 3)
    for path, perms in (
        ("/g", ["n3"]),
        ("/shared", ["n0", "r3"]),
        ("/shared/open", ["n0", "b3"]),
        ("/drop", ["n0", "w3"]),
    ):
        dom0.ask(Op.WRITE, path, "v")
        dom0.ask(Op.SET_PERMS, path, *perms)
    dom0.ask(Op.WRITE, "/secret", "v")
    return dom0, guest


def test_what_is_missing_above_is_made() -> None:
    """By WRITE and by MKDIR."""
    dom0, _ = store()
    dom0.ask(Op.WRITE, "/a/b/c", "v")
    dom0.ask(Op.MKDIR, "/d/e")
    assert (dom0.ask(Op.READ, "/a/b"), dom0.ask(Op.READ, "/a/b/c"), dom0.ask(Op.READ, "/d/e")) == ("", "v", "")


def test_mkdir_of_what_is_there_leaves_it() -> None:
    """No error, no change."""
    dom0, _ = store()
    dom0.ask(Op.MKDIR, "/shared")
    assert dom0.ask(Op.READ, "/shared") == "v"


def test_rm_of_what_is_not_there() -> None:
    """It succeeds if the parent is there, and is ENOENT otherwise; the root stays."""
    dom0, _ = store()
    dom0.ask(Op.RM, "/absent")
    assert dom0.refused(Op.RM, "/absent/below") == "ENOENT"
    assert dom0.refused(Op.RM, "/") == "EINVAL"


@pytest.mark.parametrize("tx", [False, True])
def test_new_nodes_inherit_permissions_and_a_guest_owns_what_it_makes(tx: bool) -> None:
    """T11: keys written below a directory need no SET_PERMS."""
    dom0, guest = store()
    inside = guest.start() if tx else 0
    dom0.ask(Op.WRITE, "/shared/x/y", "")
    guest.ask(Op.WRITE, "/shared/open/k", "", tx=inside)
    guest.ask(Op.MKDIR, "/shared/open/d/e", tx=inside)
    if tx:
        guest.commit(inside)
    assert dom0.ask(Op.GET_PERMS, "/shared/x/y") == "n0\0r3\0"
    assert dom0.ask(Op.GET_PERMS, "/shared/open/k") == "n3\0b3\0"
    assert dom0.ask(Op.GET_PERMS, "/shared/open/d/e") == "n3\0b3\0"
    dom0.ask(Op.WRITE, "/g/by-dom0", "")
    assert dom0.ask(Op.GET_PERMS, "/g/by-dom0") == "n3\0"


@pytest.mark.parametrize("tx", [False, True])
@pytest.mark.parametrize(
    ("op", "words", "error"),
    [
        (Op.READ, ["/secret"], "EACCES"),
        (Op.DIRECTORY, ["/secret"], "EACCES"),
        (Op.DIRECTORY_PART, ["/secret", "0"], "EACCES"),
        (Op.GET_PERMS, ["/secret"], "EACCES"),
        (Op.WRITE, ["/secret", "x"], "EACCES"),
        (Op.WRITE, ["/shared", "x"], "EACCES"),
        (Op.MKDIR, ["/secret"], "EACCES"),
        (Op.RM, ["/shared"], "EACCES"),
        (Op.RM, ["/"], "EACCES"),
        (Op.READ, ["/drop"], "EACCES"),
        (Op.SET_PERMS, ["/shared/open", "n0"], "EACCES"),
        (Op.SET_PERMS, ["/g", "n4"], "EPERM"),
        (Op.GET_PERMS, ["@releaseDomain"], "EACCES"),
        (Op.SET_PERMS, ["@releaseDomain", "n3"], "EACCES"),
        # Of what is not there a domain learns only where the nearest node above grants what it asked for.
        (Op.READ, ["/absent"], "EACCES"),
        (Op.READ, ["/secret/absent"], "EACCES"),
        (Op.READ, ["/drop/absent"], "EACCES"),
        (Op.READ, ["/shared/absent/deep"], "ENOENT"),
        (Op.READ, ["/g/absent"], "ENOENT"),
        (Op.WRITE, ["/shared/absent", ""], "EACCES"),
        (Op.MKDIR, ["/absent"], "EACCES"),
        (Op.RM, ["/absent"], "EACCES"),
        (Op.RM, ["/g/absent/deep"], "ENOENT"),
        (Op.SET_PERMS, ["/g/absent", "n3"], "ENOENT"),
    ],
)
def test_a_guest_is_refused(op: Op, words: list[str], error: str, tx: bool) -> None:
    """EACCES, or ENOENT where it may know; in a transaction as outside."""
    dom0, guest = store()
    before = dict(dom0.state.tree.nodes)
    assert guest.refused(op, *words, tx=guest.start() if tx else 0) == error
    assert dom0.state.tree.nodes == before


def test_a_guest_may_do_what_the_list_grants() -> None:
    """Read, write without read, both, and everything with its own."""
    _, guest = store()
    assert guest.ask(Op.READ, "/shared") == "v"
    guest.ask(Op.WRITE, "/drop", "dropped")
    guest.ask(Op.WRITE, "/shared/open", guest.ask(Op.READ, "/shared/open"))
    guest.ask(Op.SET_PERMS, "/g", "r3", "b0")
    guest.ask(Op.RM, "/g")


def test_a_device_model_acts_for_its_target() -> None:
    """SET_TARGET gives it the target's rights."""
    dom0, guest = store()
    model = Asker(dom0.state, 9)
    assert model.refused(Op.READ, "/g") == "EACCES"
    for domid in ("3", "9"):
        dom0.ask(Op.INTRODUCE, domid, "1", "1")
    dom0.ask(Op.SET_TARGET, "9", "3")
    assert model.ask(Op.READ, "/g") == "v"
    assert guest.refused(Op.SET_TARGET, "3", "9") == "EACCES"


@pytest.mark.parametrize("tx", [False, True])
def test_a_guest_owns_so_many_nodes(tx: bool) -> None:
    """ENOSPC for the one too many, and for a path of which only a part would fit; domain 0 may go on."""
    dom0, guest = store(Quotas(nodes=4))
    inside = guest.start() if tx else 0
    guest.ask(Op.WRITE, "/g/a", "", tx=inside)
    assert guest.refused(Op.WRITE, "/g/b/c/d", "", tx=inside) == "ENOSPC"
    guest.ask(Op.WRITE, "/g/b/c", "", tx=inside)
    assert guest.refused(Op.MKDIR, "/g/d", tx=inside) == "ENOSPC"
    guest.ask(Op.RM, "/g/b", tx=inside)
    guest.ask(Op.MKDIR, "/g/d", tx=inside)
    if tx:
        guest.commit(inside)
    for number in range(10):
        dom0.ask(Op.WRITE, f"/g/d/{number}", "")
    assert guest.refused(Op.MKDIR, "/g/e") == "ENOSPC"


@pytest.mark.parametrize("tx", [False, True])
def test_a_guest_s_node_has_so_many_bytes(tx: bool) -> None:
    """24 + 8 for the owner's entry + value + names must stay below the limit; domain 0 is exempt."""
    dom0, guest = store(Quotas(node_bytes=100))
    inside = guest.start() if tx else 0
    guest.ask(Op.WRITE, "/g", "x" * 67, tx=inside)
    assert guest.refused(Op.WRITE, "/g", "x" * 68, tx=inside) == "ENOSPC"
    assert guest.refused(Op.WRITE, "/g/new", "x" * 68, tx=inside) == "ENOSPC"
    assert guest.refused(Op.MKDIR, "/g/n", tx=inside) == "ENOSPC"
    guest.ask(Op.WRITE, "/g", "x" * 60, tx=inside)
    guest.ask(Op.MKDIR, "/g/123456", tx=inside)
    assert guest.refused(Op.SET_PERMS, "/g", "n3", "r0", tx=inside) == "ENOSPC"
    assert guest.refused(Op.MKDIR, f"/g/123456/{'n' * 70}/x", tx=inside) == "ENOSPC"
    dom0.ask(Op.WRITE, "/g", "x" * 1000)


def test_the_real_limits_are_xenstored_s() -> None:
    """2015 bytes fit into a node with one permission, 2016 do not; five permissions, 1000 nodes."""
    dom0, guest = store()
    guest.ask(Op.WRITE, "/g/v", "x" * 2015)
    assert guest.refused(Op.WRITE, "/g/v", "x" * 2016) == "ENOSPC"
    guest.ask(Op.SET_PERMS, "/g/v2" if guest.ask(Op.MKDIR, "/g/v2") else "", "n3", "r0", "r1", "r2", "r4")
    assert guest.refused(Op.SET_PERMS, "/g/v2", "n3", "r0", "r1", "r2", "r4", "r5") == "ENOSPC"
    dom0.ask(Op.SET_PERMS, "/g/v2", "n3", *(f"r{domid}" for domid in range(10, 30)))
    made = dom0.state.tree.owned_by(3)
    for number in range(1000 - made):
        guest.ask(Op.MKDIR, f"/g/{number % 20}/{number}")
        if dom0.state.tree.owned_by(3) == 1000:
            break
    assert dom0.state.tree.owned_by(3) == 1000
    assert guest.refused(Op.MKDIR, "/g/one-more") == "ENOSPC"
