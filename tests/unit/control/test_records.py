"""xenbusd.control.records: dataclasses as JSON and back; an invalid field is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from xenbusd.control.records import ControlError, Record, flat


@dataclass(frozen=True)
class Leaf(Record):
    """One value of each kind."""

    name: str
    count: int
    seconds: float
    there: bool
    maybe: str | None


@dataclass(frozen=True, kw_only=True)
class Tree(Record):
    """Records in a record, and counts beside its keys."""

    title: str
    counters: Mapping[str, int] = flat()
    leaves: tuple[Leaf, ...]
    more: Mapping[str, Any]


LEAF = Leaf("a", 1, 1.5, True, None)
TREE = Tree(title="t", counters={"requests": 7}, leaves=(LEAF,), more={"x": [1]})


def test_a_record_becomes_an_object_in_the_order_of_its_fields() -> None:
    """Counts stand where their field stands."""
    known = TREE.to_json()
    assert list(known) == ["title", "requests", "leaves", "more"]
    assert known["leaves"] == [{"name": "a", "count": 1, "seconds": 1.5, "there": True, "maybe": None}]


@pytest.mark.parametrize("record", [LEAF, TREE, Leaf("", 0, 2.0, False, "b")], ids=["leaf", "tree", "texts"])
def test_there_and_back(record: Record) -> None:
    """Nothing is lost."""
    assert type(record).from_json(record.to_json()) == record


def test_a_whole_number_may_stand_for_seconds() -> None:
    """JSON of other languages does not tell 2.0 from 2."""
    assert Leaf.from_json({**LEAF.to_json(), "seconds": 2}).seconds == 2.0


def test_a_key_of_a_later_version_is_ignored() -> None:
    """So that keys can be added."""
    assert Leaf.from_json({**LEAF.to_json(), "colour": "green"}) == LEAF


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("name", 7, "Leaf.name must be of type str, and is 7"),
        ("name", None, "Leaf.name must be of type str, and is None"),
        ("count", True, "Leaf.count must be of type int, and is True"),
        ("count", 1.5, "Leaf.count must be of type int, and is 1.5"),
        ("seconds", "1", "Leaf.seconds must be of type float, and is '1'"),
        ("there", 1, "Leaf.there must be of type bool, and is 1"),
        ("maybe", [], "Leaf.maybe must be of type str, and is []"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: object, complaint: str) -> None:
    """The field is named."""
    with pytest.raises(ControlError) as caught:
        Leaf.from_json({**LEAF.to_json(), key: value})
    assert str(caught.value) == complaint


def test_a_missing_key_is_refused() -> None:
    """As one of another type."""
    known = LEAF.to_json()
    del known["count"]
    with pytest.raises(ControlError, match=r"Leaf\.count must be of type int"):
        Leaf.from_json(known)


@pytest.mark.parametrize("known", [None, 7, "x", [LEAF.to_json()]])
def test_what_is_no_object_is_refused(known: object) -> None:
    """At the top and inside."""
    with pytest.raises(ControlError, match="a Leaf is a JSON object"):
        Leaf.from_json(known)
    with pytest.raises(ControlError, match="a Leaf is a JSON object"):
        Tree.from_json({**TREE.to_json(), "leaves": [known]})
