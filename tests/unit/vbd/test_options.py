"""The keys of [drivers.vbd]."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xenbusd.errors import UsageError
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.frontend import VbdFrontend
from xenbusd_vbd.image import formats
from xenbusd_vbd.options import CACHES, OPTIONS


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
        ("queues", 0, r"queues: 0 is not a whole number from 1 to 16"),
        ("queues", "many", r"queues: 'many' is not a whole number"),
        ("queues", True, r"queues: True is not a whole number"),
        ("direct", "no", r"direct: 'no' is neither true nor false"),
        ("image_cache", "unsafe", r"image_cache: 'unsafe' is none of writeback, none"),
        ("image_cache", ["none"], r"image_cache: \['none'\] is none of writeback, none"),
        ("ring_page_order", 5, r"ring_page_order: 5 is not a whole number from 0 to 4"),
    ],
)
def test_wrong_ones(key: str, value: object, sentence: str) -> None:
    """Each is refused before anything is served, with what to write."""
    with pytest.raises(UsageError, match=sentence):
        VbdBackend.check_options({key: value})


def test_the_readme_has_each_key() -> None:
    """Its table, and no other."""
    text = (Path(__file__).parents[3] / "drivers" / "xenbusd_vbd" / "README.md").read_text()
    _, _, table = text.partition("In the configuration file, table `[drivers.vbd]`:")
    assert set(re.findall(r"^\| `(\w+)` \| (?:back|front)end", table, re.M)) == set(OPTIONS)


def test_each_cache_has_its_words_for_qemu() -> None:
    """The option's values are those of the command."""
    assert set(CACHES) == set(formats.CACHES)
