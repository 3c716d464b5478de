"""The keys of [drivers.vbd] in the configuration file, for both ends. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from xenbusd.api import UsageError
from xenbusd_vbd.image.formats import CACHES
from xenbusd_vbd.protocol import MAX_RING_PAGE_ORDER

QUEUES_MAX = 16
PAGES_MAX = 1 << 16


def _number(least: int, most: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if good else f"write a number from {least} to {most}"

    return check


def _switch(value: object) -> str | None:
    return None if isinstance(value, bool) else "write true or false"


def _word(*words: str) -> Callable[[object], str | None]:
    return lambda value: None if value in words else f"write one of {', '.join(words)}"


OPTIONS: Mapping[str, Callable[[object], str | None]] = {
    "queues": _number(1, QUEUES_MAX),
    "direct": _switch,
    "image_cache": _word(*CACHES),
    "backing_files": _switch,
    "nbd_device": _switch,
    "pages": _number(1, PAGES_MAX),
    "ring_page_order": _number(0, MAX_RING_PAGE_ORDER),
}
"""Each key, and what tells what is wrong with a value: None if nothing is."""


def check(options: Mapping[str, object]) -> None:
    """Look at the table.

    Raises:
        UsageError: a key is unknown, or its value wrong.
    """
    for key, value in options.items():
        if key not in OPTIONS:
            near = get_close_matches(key, OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(OPTIONS)}"
            raise UsageError(f"[drivers.vbd] {key}: unknown key; {hint}")
        if wrong := OPTIONS[key](value):
            raise UsageError(f"[drivers.vbd] {key} = {value!r}: {wrong}")
