"""xenbusd.bus.nodes: the bytes of a node as Python values, and back."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenbusd.bus.nodes import (
    QUOTE_MAX,
    NodeType,
    Value,
    boolean,
    choice,
    encode,
    gref,
    key_name,
    keys,
    port,
    quote,
    text,
    unsigned,
)
from xenbusd.errors import LocalProtocolError, NodeValueError

ABI = choice("x86_32-abi", "x86_64-abi")


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (boolean, b"0", False),
        (boolean, b"1", True),
        (unsigned(), b"0", 0),
        (unsigned(), b"4294967295", 0xFFFFFFFF),
        (unsigned(4), b"4", 4),
        (unsigned(1 << 63), b"9223372036854775808", 1 << 63),
        (gref, b"8", 8),
        (port, b"15", 15),
        (ABI, b"x86_64-abi", "x86_64-abi"),
        (text, "/srv/Bücher.img".encode(), "/srv/Bücher.img"),
        (text, b"", ""),
    ],
)
def test_a_value_is_read(kind: NodeType[Any], raw: bytes, value: object) -> None:
    """Bytes to a Python value of the node's type."""
    read = kind.read("/a", raw)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        (boolean, b"2", "boolean"),
        (boolean, b"", "boolean"),
        (boolean, b"true", "boolean"),
        (boolean, b"1\0", "boolean"),
        (unsigned(), b"", "number up to 4294967295"),
        (unsigned(), b"-1", "number"),
        (unsigned(), b"+1", "number"),
        (unsigned(), b"0x10", "number"),
        (unsigned(), b"1 ", "number"),
        (unsigned(), b"1_0", "number"),
        (unsigned(), b"4294967296", "number"),
        (unsigned(4), b"5", "number up to 4"),
        (unsigned(), b"9" * 4096, "number"),
        (gref, b"x", "grant reference"),
        (port, b"x", "event channel port"),
        (ABI, b"arm-abi", "one of x86_32-abi, x86_64-abi"),
        (ABI, b"\xff", "one of"),
        (ABI, b"x86_64-abi\n", "one of"),
        (text, b"\xff", "text"),
    ],
)
def test_a_bad_value_says_where_what_and_what_instead(kind: NodeType[Any], raw: bytes, expected: str) -> None:
    """NodeValueError names the path, repeats the value, and says what it should be."""
    with pytest.raises(NodeValueError) as caught:
        kind.read("/local/domain/3/device/vbd/1/key", raw)
    message = str(caught.value)
    assert message.startswith("/local/domain/3/device/vbd/1/key holds ")
    assert quote(raw) in message
    assert f"which is no {expected}" in message
    assert caught.value.context == {"path": "/local/domain/3/device/vbd/1/key"}


@given(raw=st.binary(max_size=200))
def test_a_quote_is_short_and_printable(raw: bytes) -> None:
    """What another domain wrote can neither break a log line nor fill it (XSA-180)."""
    shown = quote(raw)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 5 * QUOTE_MAX + 5


def test_a_quote_that_was_cut_says_so() -> None:
    """Three dots after the quotation mark."""
    assert quote(b"x" * 64) == repr("x" * 64)
    assert quote(b"x" * 65) == repr("x" * 64) + "..."


@given(raw=st.binary(max_size=40))
def test_reading_raises_nothing_but_node_value_error(raw: bytes) -> None:
    """Any bytes either are a value or are refused."""
    for kind in (boolean, unsigned(), ABI, text):
        try:
            kind.read("/a", raw)
        except NodeValueError:
            continue


@pytest.mark.parametrize(
    ("value", "raw"),
    [(True, b"1"), (False, b"0"), (0, b"0"), (51712, b"51712"), ("ü", "ü".encode()), (b"\xff", b"\xff"), ("", b"")],
)
def test_a_value_is_written(value: Value, raw: bytes) -> None:
    """A boolean is 1 or 0, a number is decimal, text is UTF-8."""
    assert encode(value) == raw


@pytest.mark.parametrize("value", [None, 1.5, ["a"]])
def test_what_no_node_holds_is_our_own_bug(value: object) -> None:
    """A driver that publishes a list is told the type."""
    with pytest.raises(LocalProtocolError, match=type(value).__name__):
        encode(cast("Value", value))


def test_keywords_become_keys() -> None:
    """Python's underscore is the store's hyphen."""
    assert key_name("feature_flush_cache") == "feature-flush-cache"
    assert keys({"feature_barrier": True, "sectors": 8}) == {"feature-barrier": b"1", "sectors": b"8"}
