"""The keys of [drivers.vbd] in the configuration file, for both ends. Pure.

One file may serve both ends, so each end takes the keys of the other, too. A default that differs
between the ends stands in the module that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xenbusd.api import Option, Schema, integer, one_of, true_or_false
from xenbusd_vbd.protocol import MAX_RING_PAGE_ORDER

QUEUES_MAX = 16
PAGES_MAX = 1 << 16

CACHES = ("writeback", "none")
"""Through the host's page cache, or past it."""

OPTIONS = Schema(
    Option(
        "queues", integer(1, QUEUES_MAX), help="backend: the most queues of a frontend; frontend: queues to ask for"
    ),
    Option("direct", true_or_false, default=True, help="backend: O_DIRECT where the file system can do it"),
    Option("image_cache", one_of(*CACHES), default="writeback", help="backend: how qemu-nbd uses the page cache"),
    Option("backing_files", true_or_false, default=False, help="backend: whether images may lead to other files"),
    Option("nbd_device", true_or_false, default=True, help="frontend: whether the disk appears at /dev/nbdN"),
    Option("pages", integer(1, PAGES_MAX), unit="pages", help="frontend: data pages shared with the backend"),
    Option(
        "ring_page_order", integer(0, MAX_RING_PAGE_ORDER), default=0, help="frontend: log2 of the pages of each ring"
    ),
)


def complete(options: Mapping[str, object]) -> dict[str, Any]:
    """Add the defaults to options that were checked."""
    return {**OPTIONS.defaults, **options}


def check(options: Mapping[str, object]) -> None:
    """Check keys and values as they stand in the file.

    Raises:
        UsageError: a key is unknown, or its value wrong.
    """
    OPTIONS.given(options, "[drivers.vbd]")
