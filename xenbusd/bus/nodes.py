"""Typed node values: how a key's bytes are read and written. Pure.

Source: xen/include/public/io/*.h; the keys of each class stand in its driver's README.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from xenbusd.errors import LocalProtocolError, NodeValueError

T = TypeVar("T")

Value = str | int | bool | bytes
"""The values that can be written to a node. True and False become "1" and "0"."""

QUOTE_MAX = 64
"""Bytes of a bad value that an error message repeats."""


@dataclass(frozen=True)
class NodeType(Generic[T]):
    """How to read one kind of node.

    Args:
        name: a noun for messages, to follow "no": "boolean", "number up to 4".
        parse: bytes to value; raises ValueError.
    """

    name: str
    parse: Callable[[bytes], T]

    def read(self, path: str, raw: bytes) -> T:
        """Parse a node's value.

        Raises:
            NodeValueError: naming the path, the value and the expected type.
        """
        try:
            return self.parse(raw)
        except ValueError:
            raise NodeValueError(f"{path} holds {quote(raw)}, which is no {self.name}", path=path) from None


def quote(raw: bytes) -> str:
    """Show another domain's bytes safely: escaped and cut."""
    return repr(raw[:QUOTE_MAX].decode("ascii", "backslashreplace")) + ("..." if len(raw) > QUOTE_MAX else "")


def _parse_boolean(raw: bytes) -> bool:
    if raw not in (b"0", b"1"):
        raise ValueError
    return raw == b"1"


def unsigned(limit: int = 0xFFFFFFFF, name: str = "number") -> NodeType[int]:
    """A decimal number of 0 .. `limit`."""

    def parse(raw: bytes) -> int:
        if not raw.isdigit() or len(raw) > 20 or int(raw) > limit:
            raise ValueError
        return int(raw)

    return NodeType(f"{name} up to {limit}", parse)


def choice(*values: str) -> NodeType[str]:
    """One of these words."""

    def parse(raw: bytes) -> str:
        word = raw.decode("ascii")
        if word not in values:
            raise ValueError
        return word

    return NodeType(f"one of {', '.join(values)}", parse)


boolean = NodeType("boolean", _parse_boolean)
"""0 or 1."""

text = NodeType("text", lambda raw: raw.decode("utf-8"))
"""Any UTF-8 text."""

gref = unsigned(name="grant reference")
port = unsigned(name="event channel port")


def encode(value: Value) -> bytes:
    """Return a value as the bytes of a node."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):  # bool too
        return b"%d" % value
    if isinstance(value, str):
        return value.encode()
    raise LocalProtocolError(f"a node cannot hold {type(value).__name__}")


def key_name(name: str) -> str:
    """A key as the store spells it, from a Python keyword: feature_upper -> feature-upper."""
    return name.replace("_", "-")


def keys(values: Mapping[str, Value]) -> dict[str, bytes]:
    """Keyword arguments as keys and bytes."""
    return {key_name(name): encode(value) for name, value in values.items()}
