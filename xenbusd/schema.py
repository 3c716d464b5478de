"""Tables of options: their keys, the values that each may have, and the messages about a wrong key or value. Pure.

A `Schema` describes one table of a configuration file, such as `[daemon]` or `[drivers.vbd]`, or the NAME=VALUE
parameters of one command. Its checks turn each value as it was written into the value as it is used:

    OPTIONS = Schema(
        Option("queues", integer(1, 16), default=4, help="most queues that a guest may have"),
        Option("cache", one_of("writeback", "none"), default="writeback", help="how an image server caches"),
    )
    options = OPTIONS.read({"cache": "none"}, "[drivers.vbd]")  # {"queues": 4, "cache": "none"}

A mistake is a UsageError such as "[drivers.vbd] queue: unknown key; did you mean queues?".

Decisions: D54, D65.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from xenbusd.errors import UsageError
from xenbusd.ids import DeviceClass, is_device_class

Check = Callable[[object], Any]
"""Takes a value as it was written and returns it as it is used. Raises ValueError with a sentence that quotes the value
and says what it should be: "'yes' is neither true nor false"."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a table.

    Args:
        key: its name.
        check: see `Check`.
        unit: the unit of its number, such as "seconds"; "" where there is none.
        default: the value in use where none is given, as `check` would return it; None where there is none.
        help: its purpose: a phrase for `--help` and for tables in documents.
    """

    key: str
    check: Check
    _: KW_ONLY
    unit: str = ""
    default: Any = None
    help: str = ""

    @property
    def help_line(self) -> str:
        """Key, help, unit and default: "timeout_s  limit of a script, in seconds  [40]"."""
        unit = f", in {self.unit}" if self.unit else ""
        default = "" if self.default is None else f"  [{_as_written(self.default)}]"
        return f"{self.key}  {self.help}{unit}{default}"


class Schema(Mapping[str, Option]):
    """A table of options, by key, in the order in which they were given.

    Args:
        options: no two with the same key.
        noun: the word for an option in messages: "key" in a file, "parameter" of a command.
    """

    def __init__(self, *options: Option, noun: str = "key") -> None:
        self._options = {option.key: option for option in options}
        self._noun = noun

    def __getitem__(self, key: str) -> Option:
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option's default."""
        return {key: option.default for key, option in self._options.items()}

    @property
    def help(self) -> str:
        """All options, a line for each."""
        return "\n".join(option.help_line for option in self._options.values())

    def nearest(self, key: str) -> str | None:
        """The option that was probably meant by a key that does not exist; None if none is like it."""
        from difflib import get_close_matches  # only a mistake needs it

        near = get_close_matches(key, list(self._options), 1)
        return near[0] if near else None

    def check(self, key: str, value: object, called: str) -> Any:
        """Check one value and return it as it is used.

        Args:
            key: the option's key, which need not exist.
            value: as it was written.
            called: the option's name in messages: "--log-format", "xenbusd.toml: line 3: [daemon] log_format".

        Raises:
            UsageError: there is no such option, or the value is wrong.
        """
        if key not in self._options:
            raise UsageError(f"{called}: unknown {self._noun}; {self._advice(key)}")
        try:
            return self._options[key].check(value)
        except ValueError as error:
            raise UsageError(f"{called}: {error}") from error

    def given(self, values: Mapping[str, object], where: str) -> dict[str, Any]:
        """Check all values of a table, and return them as they are used, without any defaults.

        Args:
            values: as they were written.
            where: the text before the key in messages: "[drivers.vbd]", "vbd:".

        Raises:
            UsageError: as `check` does, for the first mistake.
        """
        return {key: self.check(key, value, f"{where} {key}") for key, value in values.items()}

    def read(self, values: Mapping[str, object], where: str) -> dict[str, Any]:
        """As `given`, with the defaults of all options that are not given.

        Raises:
            UsageError: as `given` does.
        """
        return {**self.defaults, **self.given(values, where)}

    def _advice(self, key: str) -> str:
        """What to write in place of an unknown key."""
        near = self.nearest(key)
        return f"did you mean {near}?" if near else f"the {self._noun}s are {', '.join(self._options)}"


def true_or_false(value: object) -> bool:
    """A check for true and false, as TOML writes them.

    Raises:
        ValueError
    """
    if isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is neither true nor false")


def integer(least: int, most: int) -> Check:
    """A check for a whole number from `least` to `most`."""

    def check(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise ValueError(f"{value!r} is not a whole number from {least} to {most}")

    return check


def one_of(*words: str) -> Check:
    """A check for one of these words."""

    def check(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise ValueError(f"{value!r} is none of {', '.join(words)}")

    return check


def absolute_path(value: object) -> str:
    """A check for an absolute path, whether or not a file is there.

    Raises:
        ValueError
    """
    if isinstance(value, str) and value.startswith("/"):
        return value
    raise ValueError(f"{value!r} is not an absolute path")


def device_class(value: object) -> DeviceClass:
    """A check for the name of a device class, whether there is a driver for it or not.

    Raises:
        ValueError
    """
    if isinstance(value, str) and is_device_class(value):
        return DeviceClass(value)
    raise ValueError(f"{value!r} is not a device class: use small letters, digits, - and _, as in vbd")


def _as_written(value: object) -> str:
    """A default as an administrator would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
