"""xenbusd.cli.show: a device's record as lines for people."""

from __future__ import annotations

from xenbusd.cli.show import outline


def test_what_is_known_is_indented_and_what_is_empty_left_out() -> None:
    """Numbers and False are no empty values."""
    known = {"device": "vbd/3/1", "script": None, "waiting": "", "daemon": {"requests": 0, "ring": {}, "up": False}}
    assert list(outline(known)) == [
        "device = vbd/3/1",
        "daemon:",
        "  requests = 0",
        "  ring:",
        "  up = False",
    ]


def test_findings_are_sentences() -> None:
    """One for each, with what can be done."""
    findings = ["the disk is paused; resume it", "the image server is being restarted"]
    assert list(outline({"daemon": {"findings": findings}})) == [
        "daemon:",
        "  finding = the disk is paused; resume it",
        "  finding = the image server is being restarted",
    ]
