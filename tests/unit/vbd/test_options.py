"""The keys of [drivers.vbd]."""

from __future__ import annotations

import pytest

from xenbusd.errors import UsageError
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.frontend import VbdFrontend


@pytest.mark.parametrize("driver", [VbdBackend, VbdFrontend])
def test_good_ones(driver: type[VbdBackend] | type[VbdFrontend]) -> None:
    """One file may serve both ends, so each end takes the keys of the other, too."""
    driver.check_options({})
    driver.check_options(
        {
            "queues": 16,
            "direct": False,
            "image_cache": "none",
            "backing_files": True,
            "nbd_device": False,
            "pages": 65536,
            "ring_page_order": 4,
        }
    )


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("queue", 4, r"\[drivers.vbd\] queue: unknown key; did you mean queues\?"),
        ("speed", 4, r"\[drivers.vbd\] speed: unknown key; the keys are queues, direct,"),
        ("queues", 0, r"queues = 0: write a number from 1 to 16"),
        ("queues", "many", r"queues = 'many': write a number"),
        ("queues", True, r"queues = True: write a number"),
        ("direct", "no", r"direct = 'no': write true or false"),
        ("image_cache", "unsafe", r"image_cache = 'unsafe': write one of writeback, none"),
        ("image_cache", ["none"], r"image_cache = \['none'\]: write one of writeback, none"),
        ("ring_page_order", 5, r"ring_page_order = 5: write a number from 0 to 4"),
    ],
)
def test_wrong_ones(key: str, value: object, sentence: str) -> None:
    """Each is refused before anything is served, with what to write."""
    with pytest.raises(UsageError, match=sentence):
        VbdBackend.check_options({key: value})
