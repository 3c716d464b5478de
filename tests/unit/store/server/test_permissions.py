"""Permission lists: the rights that they give, how they are parsed and printed."""

from __future__ import annotations

import pytest

from xenbusd.store.server.permissions import ALL, READ, WRITE, parse_permissions
from xenbusd.store.server.quotas import Refusal


def test_the_owner_may_do_everything_and_others_what_the_list_says() -> None:
    """The first entry is the owner and the default; of two for one domain the first counts."""
    perms = parse_permissions([b"r3", b"b4", b"w5", b"n6", b"b6"])
    assert [perms.allow(domid) for domid in (3, 4, 5, 6, 7)] == [ALL, READ | WRITE, WRITE, 0, READ]


def test_a_domain_has_the_rights_of_its_target_too() -> None:
    """SET_TARGET: a device model reaches what its domain reaches."""
    assert parse_permissions([b"n3"]).allow(9, 3) == ALL
    assert parse_permissions([b"n0", b"r3"]).allow(9, 3) == READ


def test_the_text_is_what_was_given() -> None:
    """GET_PERMS returns the entries in order, each with its NUL."""
    assert parse_permissions([b"n0", b"r3", b"b65535"]).text == b"n0\0r3\0b65535\0"


@pytest.mark.parametrize("word", [b"", b"n", b"x3", b"r-1", b"r03", b"r65536", b"r3 ", b"3", b"rr3", b"r\xb2"])
def test_what_is_no_permission_is_refused(word: bytes) -> None:
    """A permission is a letter of n r w b and a domid, nothing else."""
    with pytest.raises(Refusal, match="EINVAL"):
        parse_permissions([b"n0", word])


def test_an_empty_list_is_refused() -> None:
    """A node always has an owner."""
    with pytest.raises(Refusal, match="EINVAL"):
        parse_permissions([])


def test_striking_a_domain_leaves_the_others() -> None:
    """A list that does not name the domain stays the same object."""
    perms = parse_permissions([b"n0", b"r3", b"b4"])
    assert perms.without(3).text == b"n0\0b4\0"
    assert perms.without(5) is perms
    assert perms.owned_by(7).text == b"n7\0r3\0b4\0"
