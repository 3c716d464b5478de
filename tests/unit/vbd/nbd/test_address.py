"""Addresses of NBD servers, as params has them."""

from __future__ import annotations

import pytest

from xenbusd_vbd.nbd.address import Address, parse_address
from xenbusd_vbd.nbd.errors import NbdError


@pytest.mark.parametrize(
    ("format", "rest", "address"),
    [
        ("nbd", "unix:/run/a.sock", Address(path="/run/a.sock")),
        ("nbd", "unix:/run/a.sock:exportname=disk 1", Address(path="/run/a.sock", export="disk 1")),
        ("nbd", "//host", Address(host="host")),
        ("nbd", "//host:1234/a%20b/c", Address(host="host", port=1234, export="a b/c")),
        ("nbd", "//[::1]/x", Address(host="::1", export="x")),
        ("nbd+unix", "///x?socket=/run/a.sock", Address(path="/run/a.sock", export="x")),
        ("nbd+unix", "///?socket=/run/a%3Fb", Address(path="/run/a?b")),
    ],
)
def test_addresses(format: str, rest: str, address: Address) -> None:
    """The URIs of NBD, and QEMU's older way for a socket."""
    assert parse_address(format, rest) == address


@pytest.mark.parametrize(
    ("format", "rest"),
    [
        ("nbd", "unix:a.sock"),
        ("nbd", "unix:/" + "a" * 107),
        ("nbd", "unix:/a\0b"),
        ("nbd", ""),
        ("nbd", "host:1234"),
        ("nbd", "//host:port/x"),
        ("nbd", "//host:70000/x"),
        ("nbd", "//host/x?socket=/a"),
        ("nbd", "//user@host/x"),
        ("nbd", "//host/x#y"),
        ("nbd", "//[::1/x"),
        ("nbd", "//host/" + "a" * 4097),
        ("nbd+unix", "//host/x?socket=/a"),
        ("nbd+unix", "///x"),
        ("nbd+unix", "///x?socket=a"),
        ("nbd+unix", "///x?socket=/a&socket=/b"),
        ("nbd+unix", "///x?socket=/a&tls=1"),
    ],
)
def test_what_is_no_address(format: str, rest: str) -> None:
    """It is refused by a sentence that says so."""
    with pytest.raises(NbdError, match="NBD address"):
        parse_address(format, rest)


def test_an_address_in_a_sentence() -> None:
    """As an administrator would write it."""
    assert str(Address(path="/a", export="b")) == "nbd:unix:/a, export 'b'"
    assert str(Address(host="h", port=1)) == "nbd://h:1"
