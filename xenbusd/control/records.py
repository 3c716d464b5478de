"""Frozen dataclasses as JSON objects, and back, by the types of their fields. Pure.

A field may be a str, int, float, bool or None, a mapping with text as keys, another record, or a tuple of records. One
field may be `flat`: a mapping of counts whose entries stand beside the other keys instead of in an object of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from xenbusd.errors import XenbusdError


class ControlError(XenbusdError):
    """A line that is not of the control protocol, or a request that was refused; the message is the other side's."""


def flat() -> Any:
    """A dataclass field whose entries stand beside the record's other keys."""
    return field(default_factory=dict, metadata={"flat": True})


def optional() -> Any:
    """A dataclass field that is left out of the JSON object while it is None."""
    return field(default=None, metadata={"optional": True})


class Record:
    """Base of all messages and their parts. Subclasses are frozen dataclasses."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, its keys in the order of the fields."""
        known: dict[str, Any] = {}
        for each in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, each.name)
            if each.metadata.get("flat"):
                known.update(value)
            elif value is not None or not each.metadata.get("optional"):
                known[each.name] = _plain(value)
        return known

    @classmethod
    def from_json(cls, known: object) -> Self:
        """Read what `to_json` returned. Keys that this version does not know are ignored.

        Raises:
            ControlError: it is no object; a key is missing, or its value is of another type.
        """
        if not isinstance(known, dict):
            raise ControlError(f"a {cls.__name__} is a JSON object, not {known!r:.80}")
        types = get_type_hints(cls)
        values: dict[str, Any] = {}
        for each in fields(cls):  # type: ignore[arg-type]
            if each.metadata.get("flat"):
                counts = {key: value for key, value in known.items() if key not in types and type(value) is int}
                values[each.name] = counts
            else:
                values[each.name] = _read(known.get(each.name), types[each.name], f"{cls.__name__}.{each.name}")
        return cls(**values)


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _read(value: object, wanted: Any, where: str) -> object:
    """Turn a JSON value into a field of a type."""
    if get_origin(wanted) is UnionType:
        wanted = type(None) if value is None else get_args(wanted)[0]
    origin = get_origin(wanted)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(item, get_args(wanted)[0], where) for item in value)
    if isinstance(wanted, type) and issubclass(wanted, Record):
        return wanted.from_json(value)
    if wanted is float and type(value) is int:
        return float(value)
    kind = origin or wanted
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ControlError(f"{where} must be of type {kind.__name__}, and is {value!r:.80}")
    return value
