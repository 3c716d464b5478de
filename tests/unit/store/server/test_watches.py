"""Watches: the changes that fire them, the paths that they report, and the domains that may get them."""

from __future__ import annotations

import pytest

from tests.doubles.asker import Asker
from xenbusd.store.server.quotas import Quotas
from xenbusd.store.server.state import State
from xenbusd.store.wire import Op


@pytest.fixture
def dom0() -> Asker:
    """A caller in domain 0."""
    return Asker(State(Quotas()))


@pytest.fixture
def guest(dom0: Asker) -> Asker:
    """A caller in domain 3, which owns its home."""
    dom0.ask(Op.WRITE, "/local/domain/3", "")
    dom0.ask(Op.SET_PERMS, "/local/domain/3", "n3")
    dom0.ask(Op.INTRODUCE, "3", "1", "1")
    return Asker(dom0.state, 3)


def watching(asker: Asker, path: str, token: str = "t") -> None:
    """Register a watch and take its first event."""
    asker.ask(Op.WATCH, path, token)
    assert asker.events() == [(path, token)]


def test_t1_a_watch_fires_once_at_registration(dom0: Asker) -> None:
    """Even where there is no node."""
    dom0.ask(Op.WATCH, "/not/there", "token")
    assert dom0.wakes == 1
    assert dom0.events() == [("/not/there", "token")]
    assert dom0.events() == []


def test_a_watch_hears_of_its_node_and_of_all_below(dom0: Asker) -> None:
    """Not of what is above or beside it, and a name that begins alike is beside."""
    watching(dom0, "/a/b")
    for path in ("/a/b", "/a/b/c/d", "/a", "/a/bc", "/x"):
        dom0.ask(Op.WRITE, path, "")
    assert dom0.events() == [("/a/b", "t"), ("/a/b/c/d", "t")]


def test_the_root_hears_of_everything(dom0: Asker) -> None:
    """But not of the special names."""
    watching(dom0, "/")
    dom0.ask(Op.WRITE, "/a/b", "")
    dom0.ask(Op.INTRODUCE, "7", "1", "1")
    dom0.ask(Op.SET_PERMS, "@releaseDomain", "n0", "r7")
    assert dom0.events() == [("/a/b", "t")]


def test_every_edit_fires(dom0: Asker) -> None:
    """Writes of the same value too; but not a MKDIR of what is there, nor an RM of what is not."""
    watching(dom0, "/")
    for op, words in (
        (Op.WRITE, ["/a", "1"]),
        (Op.WRITE, ["/a", "1"]),
        (Op.SET_PERMS, ["/a", "n0"]),
        (Op.MKDIR, ["/b"]),
        (Op.RM, ["/b"]),
    ):
        dom0.ask(op, *words)
        assert dom0.events() == [(words[0], "t")], (op, words)
    dom0.ask(Op.MKDIR, "/a")
    dom0.ask(Op.RM, "/b")
    assert dom0.events() == []


def test_a_removal_fires_above_once_and_below_by_each_node_s_own_path(dom0: Asker) -> None:
    """T5: a watch below a removed node hears of its own node."""
    for path in ("/a/b/c", "/a/b/d/e", "/a/x"):
        dom0.ask(Op.WRITE, path, "")
    for path, token in (("/", "root"), ("/a/b/d", "d"), ("/a/b/d/e", "e"), ("/a/x", "x"), ("/a/b/none", "none")):
        watching(dom0, path, token)
    dom0.ask(Op.RM, "/a/b")
    assert dom0.events() == [("/a/b", "root"), ("/a/b/d", "d"), ("/a/b/d/e", "e")]


def test_t2_equal_events_are_kept_once_until_they_are_taken(dom0: Asker) -> None:
    """Path and token together; after they were taken they come again."""
    dom0.ask(Op.WATCH, "/a", "one")
    dom0.ask(Op.WATCH, "/a", "two")
    for _ in range(5):
        dom0.ask(Op.WRITE, "/a", "")
    assert dom0.events() == [("/a", "one"), ("/a", "two")]
    dom0.ask(Op.WRITE, "/a", "")
    assert len(dom0.events()) == 2


def test_t3_the_same_path_and_token_again_exists(dom0: Asker) -> None:
    """EEXIST; another token or another connection is another watch."""
    watching(dom0, "/a")
    assert dom0.refused(Op.WATCH, "/a", "t") == "EEXIST"
    watching(dom0, "/a", "u")
    watching(Asker(dom0.state), "/a")


def test_t4_relative_in_relative_out(dom0: Asker, guest: Asker) -> None:
    """A relative watch means the domain's home and reports paths relative to it."""
    watching(guest, "device")
    watching(dom0, "backend")
    guest.ask(Op.WRITE, "/local/domain/3/device/vbd/1", "")
    guest.ask(Op.WRITE, "device", "")
    dom0.ask(Op.WRITE, "/local/domain/0/backend/vbd", "")
    assert guest.events() == [("device/vbd/1", "t"), ("device", "t")]
    assert dom0.events() == [("backend/vbd", "t")]
    assert guest.refused(Op.WATCH, "/local/domain/3/device", "t") == "EEXIST"


def test_unwatch_ends_it_and_drops_its_pending_events(dom0: Asker) -> None:
    """Nothing comes with the token afterwards; an unknown one is ENOENT."""
    dom0.ask(Op.WATCH, "/a", "t")
    dom0.ask(Op.WATCH, "/a", "u")
    dom0.ask(Op.UNWATCH, "/a", "t")
    dom0.ask(Op.WRITE, "/a", "")
    assert dom0.events() == [("/a", "u")]
    for path, token in (("/a", "t"), ("/b", "u"), ("rel", "u")):
        assert dom0.refused(Op.UNWATCH, path, token) == "ENOENT"
    dom0.ask(Op.UNWATCH, "/a", "u")
    assert not dom0.state.watches


def test_reset_watches_takes_watches_and_transactions(guest: Asker) -> None:
    """What a guest asks for before it starts anew (kexec)."""
    watching(guest, "a")
    tx = guest.start()
    guest.ask(Op.RESET_WATCHES, "")
    guest.ask(Op.WRITE, "a", "")
    assert guest.events() == []
    assert guest.refused(Op.READ, "a", tx=tx) == "ENOENT"
    assert (guest.caller.domain.watches, guest.caller.domain.transactions) == (0, 0)


def test_a_domain_hears_only_of_what_it_may_read(dom0: Asker, guest: Asker) -> None:
    """The node, or the one above it; an event would betray the path otherwise (XSA-115)."""
    watching(guest, "/", "all")
    dom0.ask(Op.WRITE, "/secret/key", "")
    dom0.ask(Op.RM, "/secret/key")
    assert guest.events() == []
    dom0.ask(Op.WRITE, "/open/hidden", "")
    dom0.ask(Op.SET_PERMS, "/open", "n0", "r3")
    assert guest.events() == [("/open", "all")]
    dom0.ask(Op.WRITE, "/open/hidden", "")
    assert guest.events() == [("/open/hidden", "all")]


def test_a_domain_that_loses_the_right_to_read_gets_the_event(dom0: Asker, guest: Asker) -> None:
    """The permissions before the change count as well."""
    dom0.ask(Op.WRITE, "/open", "")
    dom0.ask(Op.SET_PERMS, "/open", "n0", "r3")
    watching(guest, "/open")
    dom0.ask(Op.SET_PERMS, "/open", "n0")
    assert guest.events() == [("/open", "t")]
    dom0.ask(Op.WRITE, "/open", "")
    assert guest.events() == []


def test_a_removal_fires_for_those_who_could_read_the_node(dom0: Asker, guest: Asker) -> None:
    """Directly, and at a commit."""
    for _ in range(2):
        dom0.ask(Op.WRITE, "/open/below", "")
        dom0.ask(Op.SET_PERMS, "/open", "n0", "r3")
        dom0.ask(Op.SET_PERMS, "/open/below", "n0", "r3")
        guest.events()
        if not guest.caller.watches:
            watching(guest, "/open")
            watching(guest, "/open/below", "b")
            dom0.ask(Op.RM, "/open")
        else:
            tx = dom0.start()
            dom0.ask(Op.RM, "/open", tx=tx)
            dom0.commit(tx)
        assert guest.events() == [("/open", "t"), ("/open/below", "b")]


def test_special_watches(dom0: Asker, guest: Asker) -> None:
    """Domain 0 hears of introductions and releases; a guest only if the special node's permissions say so."""
    for name in ("@introduceDomain", "@releaseDomain"):
        watching(dom0, name)
        watching(guest, name)
    dom0.ask(Op.INTRODUCE, "5", "1", "1")
    assert (dom0.events(), guest.events()) == ([("@introduceDomain", "t")], [])
    dom0.ask(Op.INTRODUCE, "5", "1", "1")
    assert dom0.events() == []
    dom0.ask(Op.SET_PERMS, "@releaseDomain", "n0", "r3")
    assert dom0.ask(Op.GET_PERMS, "@releaseDomain") == "n0\0r3\0"
    dom0.ask(Op.RELEASE, "5")
    assert (dom0.events(), guest.events()) == ([("@releaseDomain", "t")], [("@releaseDomain", "t")])


def test_matching_does_not_look_at_the_other_watches(dom0: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change asks at its own path and above it, however many watches there are."""
    for number in range(1000):
        dom0.ask(Op.WATCH, f"/w/{number}", "t")
    asked: list[bytes] = []
    on = dom0.state.watches._on

    class Counting(dict[bytes, object]):
        def get(self, path: bytes, default: object = None) -> object:
            asked.append(path)
            return on.get(path, default)

    monkeypatch.setattr(dom0.state.watches, "_on", Counting(on))
    dom0.events()
    dom0.ask(Op.WRITE, "/w/7/x", "")
    assert asked == [b"/w/7/x", b"/w/7", b"/w", b"/"]
    assert dom0.events() == [("/w/7/x", "t")]


def test_a_guest_that_does_not_take_its_events_is_dropped(dom0: Asker) -> None:
    """A guest's memory in the store is bounded; domain 0's own connections are trusted."""
    state = State(Quotas(unsent_event_bytes=1000))
    dom0, guest = Asker(state), Asker(state, 3)
    dom0.ask(Op.WRITE, "/d", "")
    dom0.ask(Op.SET_PERMS, "/d", "n0", "r3")
    for asker in (dom0, guest):
        watching(asker, "/d")
    for _ in range(100):
        dom0.ask(Op.WRITE, "/d/same", "")
    assert not guest.dropped
    for number in range(100):
        dom0.ask(Op.WRITE, f"/d/{number}", "")
    assert guest.dropped
    assert not dom0.dropped
    assert guest.caller.take_events() == b""
    assert len(dom0.events()) == 101
    assert state.domains.get(3).watches == 0


def test_an_event_that_no_packet_can_hold_is_not_sent(dom0: Asker) -> None:
    """A long token, and later a longer path than the one it was registered with."""
    token = "t" * 4000
    watching(dom0, "/a", token)
    dom0.ask(Op.WRITE, "/a/" + "n" * 200, "")
    assert dom0.events() == []
