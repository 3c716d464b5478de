"""The operations as bytes: the answers, the refusals, and their errors."""

from __future__ import annotations

import errno

import pytest

from tests.doubles.asker import Asker
from xenbusd.store.server.quotas import Quotas, Refusal
from xenbusd.store.server.state import State
from xenbusd.store.wire import PAYLOAD_MAX, Op


@pytest.fixture
def dom0() -> Asker:
    """A caller in domain 0."""
    return Asker(State(Quotas()))


@pytest.fixture
def guest(dom0: Asker) -> Asker:
    """A caller in domain 3, which owns its home."""
    dom0.ask(Op.WRITE, "/local/domain/3", "")
    dom0.ask(Op.SET_PERMS, "/local/domain/3", "n3")
    return Asker(dom0.state, 3)


def test_values_are_bytes(dom0: Asker) -> None:
    """NULs, newlines and what is no text come back as they went in; READ adds nothing."""
    value = bytes(range(256))
    assert dom0.raw(Op.WRITE, b"/a\0" + value) == b"OK\0"
    assert dom0.raw(Op.READ, b"/a\0") == value
    dom0.raw(Op.WRITE, b"/a\0")
    assert dom0.raw(Op.READ, b"/a\0") == b""


def test_a_relative_path_means_the_domain_s_home(dom0: Asker, guest: Asker) -> None:
    """T4: /local/domain/<domid>, for domain 0 too."""
    dom0.ask(Op.WRITE, "name", "Domain-0")
    guest.ask(Op.WRITE, "data/x", "1")
    assert dom0.ask(Op.READ, "/local/domain/0/name") == "Domain-0"
    assert dom0.ask(Op.READ, "/local/domain/3/data/x") == "1"


BAD_PATHS = [
    b"",
    b"//",
    b"/a/",
    b"a/",
    b"/a//b",
    b"/a b",
    b"/a.b",
    b"/\xe4",
    b"/a\n",
    b"/a\0b",
    b"@releaseDomain",
    b"/" + b"a" * 3072,
]


TAILS = {Op.WRITE: b"v", Op.DIRECTORY_PART: b"0\0", Op.WATCH: b"t\0"}
BAD_REQUESTS = [
    (op, path)
    for op in (Op.READ, Op.MKDIR, Op.RM, Op.DIRECTORY, Op.WRITE, Op.DIRECTORY_PART, Op.WATCH)
    for path in BAD_PATHS
    # Where more may follow, a NUL ends the path; and a name with an @ can be watched.
    if not (op in TAILS and b"\0" in path) and not (op == Op.WATCH and path.startswith(b"@"))
]


@pytest.mark.parametrize(("op", "path"), BAD_REQUESTS)
def test_what_is_no_path_is_refused(dom0: Asker, op: Op, path: bytes) -> None:
    """EINVAL, and nothing is made."""
    before = set(dom0.state.tree.nodes)
    with pytest.raises(Refusal, match="EINVAL"):
        dom0.raw(op, path + b"\0" + TAILS.get(op, b""))
    assert set(dom0.state.tree.nodes) == before


def test_a_guest_s_paths_are_shorter(dom0: Asker, guest: Asker) -> None:
    """2048 bytes, its home not counted; domain 0 has all 3072."""
    name = ("/" + "n" * 255) * 8
    guest.ask(Op.MKDIR, "/local/domain/3/n" + name[1:])
    assert guest.refused(Op.MKDIR, "/local/domain/3/nn" + name[1:]) == "EINVAL"
    assert guest.refused(Op.READ, name + "x") == "EINVAL"
    dom0.ask(Op.MKDIR, "/" + "n" * 3071)


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        (Op.READ, b""),
        (Op.READ, b"/tool"),
        (Op.READ, b"/tool\0/tool\0"),
        (Op.DIRECTORY, b"/tool\0x"),
        (Op.WRITE, b"/tool"),
        (Op.WRITE, b""),
        (Op.SET_PERMS, b"/tool\0"),
        (Op.SET_PERMS, b"/tool\0n0"),
        (Op.SET_PERMS, b"/tool\0n0\0x\0"),
        (Op.WATCH, b"/tool\0"),
        (Op.WATCH, b"/tool\0t"),
        (Op.UNWATCH, b"/tool\0"),
        (Op.DIRECTORY_PART, b"/tool\0"),
        (Op.DIRECTORY_PART, b"/tool\0-1\0"),
        (Op.DIRECTORY_PART, b"/tool\0x\0"),
        (Op.TRANSACTION_START, b""),
        (Op.TRANSACTION_START, b"x"),
        (Op.INTRODUCE, b"1\02\0"),
        (Op.INTRODUCE, b"1\02\00\0"),
        (Op.INTRODUCE, b"32752\02\03\0"),
        (Op.INTRODUCE, b"x\02\03\0"),
        (Op.RELEASE, b"0\0"),
        (Op.RELEASE, b"\0"),
        (Op.GET_DOMAIN_PATH, b"x\0"),
        (Op.IS_DOMAIN_INTRODUCED, b"\xb2\0"),
        (Op.SET_TARGET, b"1\0"),
        (Op.SET_TARGET, b"0\00\0"),
        (Op.CONTROL, b""),
        (Op.CONTROL, b"live-update\0"),
    ],
)
def test_a_malformed_payload_is_refused(dom0: Asker, op: Op, payload: bytes) -> None:
    """EINVAL."""
    with pytest.raises(Refusal, match="EINVAL"):
        dom0.raw(op, payload)


@pytest.mark.parametrize("op", [Op.WATCH_EVENT, Op.ERROR, 3 + 20, 1 << 31, 0xFFFFFFFF])
def test_what_is_no_operation_is_refused(dom0: Asker, op: int) -> None:
    """ENOSYS, as xenstored says."""
    with pytest.raises(Refusal, match="ENOSYS"):
        dom0.raw(op, b"x\0")


@pytest.mark.parametrize("op", [Op.INTRODUCE, Op.RELEASE, Op.RESUME, Op.SET_TARGET, Op.CONTROL])
def test_domain_0_s_operations_are_not_a_guest_s(guest: Asker, op: Op) -> None:
    """EACCES, whatever the payload is."""
    assert guest.refused(op, "3", "1", "1") == "EACCES"


def test_a_listing_that_fits_comes_whole(dom0: Asker) -> None:
    """4096 bytes do; one more is E2BIG."""
    for number in range(63):
        dom0.ask(Op.MKDIR, f"/d/{number:063}")
    dom0.ask(Op.MKDIR, f"/d/{'x' * 63}")
    assert len(dom0.ask(Op.DIRECTORY, "/d")) == PAYLOAD_MAX
    dom0.ask(Op.MKDIR, "/d/y")
    assert dom0.refused(Op.DIRECTORY, "/d") == "E2BIG"


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("tx", [False, True])
def test_directory_part_brings_a_listing_of_any_length(dom0: Asker, count: int, tx: bool) -> None:
    """generation NUL names, from an offset on; an empty name marks the end."""
    names = [f"{number:063}" for number in range(count)]
    dom0.ask(Op.MKDIR, "/d")
    for name in names:
        dom0.ask(Op.MKDIR, f"/d/{name}")
    inside = dom0.start() if tx else 0
    listing, generations = "", set()
    while not listing.endswith("\0\0") and listing != "\0":
        answer = dom0.ask(Op.DIRECTORY_PART, "/d", str(len(listing)), tx=inside)
        assert len(answer) <= PAYLOAD_MAX
        generation, _, part = answer.partition("\0")
        assert part
        generations.add(int(generation))
        listing += part
    assert listing == "".join(f"{name}\0" for name in names) + "\0"
    assert len(generations) == 1
    assert dom0.ask(Op.DIRECTORY_PART, "/d", "999999", tx=inside) == f"{generations.pop()}\0\0"


def test_a_permission_list_that_fits_no_packet_is_too_big(dom0: Asker) -> None:
    """It can be set on a short path and inherited; GET_PERMS says E2BIG then, as xenstored would."""
    words = [f"r{domid}" for domid in range(10000, 10584)]
    dom0.ask(Op.SET_PERMS, "/", "n0", *words[:580])
    assert len(dom0.ask(Op.GET_PERMS, "/")) == 3 + 580 * 7


def test_domains(dom0: Asker, guest: Asker) -> None:
    """Introduce, ask, resume, release; a guest may ask."""
    assert guest.ask(Op.GET_DOMAIN_PATH, "77") == "/local/domain/77\0"
    assert [guest.ask(Op.IS_DOMAIN_INTRODUCED, who) for who in ("0", "3", "77", "32752")] == [
        "T\0",
        "F\0",
        "F\0",
        "F\0",
    ]
    assert dom0.ask(Op.INTRODUCE, "3", "123", "4") == "OK\0"
    assert [guest.ask(Op.IS_DOMAIN_INTRODUCED, who) for who in ("3", "32752")] == ["T\0", "T\0"]
    assert dom0.ask(Op.RESUME, "3") == "OK\0"
    assert dom0.refused(Op.RESUME, "4") == "ENOENT"
    assert dom0.refused(Op.SET_TARGET, "3", "4") == "ENOENT"
    assert dom0.ask(Op.RELEASE, "3") == "OK\0"
    assert guest.dropped
    assert dom0.refused(Op.RELEASE, "3") == "ENOENT"
    assert dom0.ask(Op.IS_DOMAIN_INTRODUCED, "3") == "F\0"


def test_control_helps_and_does_nothing_else(dom0: Asker) -> None:
    """The one command."""
    assert dom0.ask(Op.CONTROL, "help") == "help\0"


def test_a_released_domain_leaves_nothing_of_it(dom0: Asker, guest: Asker) -> None:
    """Its nodes go, its rights go (XSA-322), its watches and transactions end; a later domain of its number is new."""
    dom0.ask(Op.INTRODUCE, "3", "1", "1")
    guest.ask(Op.WRITE, "data/x", "")
    dom0.ask(Op.WRITE, "/backend/vbd/3/51712", "kept")
    dom0.ask(Op.SET_PERMS, "/backend/vbd/3/51712", "n0", "r3", "r4")
    dom0.ask(Op.SET_PERMS, "@releaseDomain", "n0", "r3")
    guest.ask(Op.WATCH, "data", "t")
    guest.start()
    dom0.ask(Op.WATCH, "/", "all")
    dom0.ask(Op.WATCH, "/local/domain/3/data/x", "x")
    dom0.ask(Op.WATCH, "@releaseDomain", "gone")
    dom0.events()
    dom0.ask(Op.RELEASE, "3")
    assert dom0.events() == [("/local/domain/3", "all"), ("/local/domain/3/data/x", "x"), ("@releaseDomain", "gone")]
    assert dom0.names("/local/domain") == []
    assert dom0.ask(Op.GET_PERMS, "/backend/vbd/3/51712") == "n0\0r4\0"
    assert dom0.ask(Op.GET_PERMS, "@releaseDomain") == "n0\0"
    assert dom0.state.tree.owned_by(3) == 0
    later = Asker(dom0.state, 3)
    assert later.refused(Op.READ, "/backend/vbd/3/51712") == "EACCES"
    assert (later.caller.domain.watches, later.caller.domain.transactions) == (0, 0)


def test_the_device_model_of_a_released_domain_loses_its_rights(dom0: Asker) -> None:
    """A target that is gone is no target."""
    for domid in ("3", "9"):
        dom0.ask(Op.INTRODUCE, domid, "1", "1")
    dom0.ask(Op.SET_TARGET, "9", "3")
    dom0.ask(Op.RELEASE, "3")
    dom0.ask(Op.WRITE, "/later", "")
    dom0.ask(Op.SET_PERMS, "/later", "n3")
    assert Asker(dom0.state, 9).refused(Op.READ, "/later") == "EACCES"


def test_a_guest_s_watches_and_transactions_are_counted() -> None:
    """E2BIG and ENOSPC, over all of its connections; what ends makes room; domain 0 has no limit."""
    state = State(Quotas(watches=3, transactions=2))
    dom0, guest, twin = Asker(state), Asker(state, 3), Asker(state, 3)
    for asker in (dom0, dom0, guest, twin):
        asker.ask(Op.WATCH, "/a", str(len(asker.caller.watches)))
        asker.start()
    guest.ask(Op.WATCH, "/b", "t")
    assert twin.refused(Op.WATCH, "/c", "t") == "E2BIG"
    assert twin.refused(Op.TRANSACTION_START, "") == "ENOSPC"
    state.leave(guest.caller)
    twin.ask(Op.WATCH, "/c", "t")
    twin.start()
    assert twin.refused(Op.TRANSACTION_START, "") == "ENOSPC"
    for number in range(100):
        dom0.ask(Op.WATCH, f"/{number}", "t")
        dom0.start()


def test_a_closed_store_drops_everybody(dom0: Asker, guest: Asker) -> None:
    """Each connection is told to end."""
    dom0.state.close()
    assert dom0.dropped
    assert guest.dropped


def test_every_refusal_has_a_name_for_the_wire() -> None:
    """xs_wire.h's xsd_errors has them all."""
    known = (
        "EINVAL EACCES EEXIST EISDIR ENOENT ENOMEM ENOSPC EIO ENOTEMPTY ENOSYS EROFS EBUSY EAGAIN EISCONN E2BIG EPERM"
    )
    for name in ("EINVAL", "EACCES", "EEXIST", "ENOENT", "ENOSPC", "ENOSYS", "EBUSY", "EAGAIN", "E2BIG", "EPERM"):
        assert name in known.split()
        assert str(Refusal(getattr(errno, name))) == name
