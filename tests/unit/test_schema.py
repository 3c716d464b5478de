"""xenbusd.schema: the values that a table of options accepts, and its messages for mistakes."""

from __future__ import annotations

import pytest

from xenbusd.errors import UsageError
from xenbusd.schema import Check, Option, Schema, absolute_path, device_class, integer, one_of, true_or_false

TABLE = Schema(
    Option("queues", integer(1, 16), default=4, help="most queues that a guest may have"),
    Option("cache", one_of("writeback", "none"), default="writeback", help="how an image server caches"),
    Option("direct", true_or_false, default=True),
    Option("folder", absolute_path, help="where images are"),
    Option("limit_s", float, unit="seconds", default=40.0, help="limit of a script"),
)


def test_values_are_checked_and_defaults_filled_in() -> None:
    """`read` returns every option, `given` those alone that are in the table."""
    assert TABLE.read({"cache": "none", "limit_s": 5}, "[t]") == {
        "queues": 4, "cache": "none", "direct": True, "folder": None, "limit_s": 5.0,
    }  # fmt: skip
    assert TABLE.given({"limit_s": 5}, "[t]") == {"limit_s": 5.0}
    assert TABLE.read({}, "[t]") == TABLE.defaults


def test_it_is_a_mapping_in_its_order() -> None:
    """Documents and tests go through the options by key."""
    assert list(TABLE) == ["queues", "cache", "direct", "folder", "limit_s"]
    assert (len(TABLE), TABLE["limit_s"].unit) == (5, "seconds")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("queue", 4, "[t] queue: unknown key; did you mean queues?"),
        ("speed", 4, "[t] speed: unknown key; the keys are queues, cache, direct, folder, limit_s"),
        ("queues", 0, "[t] queues: 0 is not a whole number from 1 to 16"),
        ("queues", 17, "[t] queues: 17 is not a whole number from 1 to 16"),
        ("queues", "4", "[t] queues: '4' is not a whole number from 1 to 16"),
        ("queues", True, "[t] queues: True is not a whole number from 1 to 16"),
        ("queues", 1.0, "[t] queues: 1.0 is not a whole number from 1 to 16"),
        ("cache", "unsafe", "[t] cache: 'unsafe' is none of writeback, none"),
        ("cache", ["none"], "[t] cache: ['none'] is none of writeback, none"),
        ("direct", "no", "[t] direct: 'no' is neither true nor false"),
        ("direct", 1, "[t] direct: 1 is neither true nor false"),
        ("folder", "srv", "[t] folder: 'srv' is not an absolute path"),
        ("folder", 1, "[t] folder: 1 is not an absolute path"),
    ],
)
def test_a_mistake_is_named(key: str, value: object, sentence: str) -> None:
    """Each with the option's name and with what would be right."""
    with pytest.raises(UsageError) as caught:
        TABLE.read({key: value}, "[t]")
    assert str(caught.value) == sentence


def test_one_value_by_its_own_name() -> None:
    """A flag of a command is called as it was typed."""
    assert TABLE.check("queues", 2, "--queues") == 2
    with pytest.raises(UsageError, match=r"^--queues: 'x' is not a whole number"):
        TABLE.check("queues", "x", "--queues")


def test_parameters_are_called_parameters() -> None:
    """NAME=VALUE parameters are no keys of a file."""
    parameters = Schema(Option("mode", one_of("w", "r")), Option("target", absolute_path), noun="parameter")
    for name, advice in (("modes", "did you mean mode?"), ("size", "the parameters are mode, target")):
        with pytest.raises(UsageError) as caught:
            parameters.given({name: "x"}, "vbd:")
        assert str(caught.value) == f"vbd: {name}: unknown parameter; {advice}"


def test_the_key_that_was_meant() -> None:
    """For messages that are worded by others."""
    assert (TABLE.nearest("queue"), TABLE.nearest("speed")) == ("queues", None)


def test_help_lines() -> None:
    """Each option's line tells what it is for, its unit and its default."""
    assert TABLE.help.splitlines() == [
        "queues  most queues that a guest may have  [4]",
        "cache  how an image server caches  [writeback]",
        "direct    [true]",
        "folder  where images are",
        "limit_s  limit of a script, in seconds  [40]",
    ]


@pytest.mark.parametrize(("check", "value"), [(integer(0, 4), 0), (integer(0, 4), 4), (one_of("a"), "a")])
def test_limits_belong_to_the_range(check: Check, value: object) -> None:
    """The least and the most are accepted."""
    assert check(value) == value


@pytest.mark.parametrize("value", ["vbd", "9pfs", "foo-bar", "my_class-2"])
def test_a_device_class(value: str) -> None:
    """As a directory's name in the store."""
    assert device_class(value) == value


@pytest.mark.parametrize("value", ["", "Vbd", "v bd", "-x", "v/d", 5, None])
def test_what_is_no_device_class(value: object) -> None:
    """The sentence says what one is made of."""
    with pytest.raises(ValueError, match="is not a device class: use small letters, digits, - and _, as in vbd"):
        device_class(value)
