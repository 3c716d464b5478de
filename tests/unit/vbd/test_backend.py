"""xenbusd_vbd.backend: the driver's findings about a disk, from its nodes alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from xenbusd.api import Finding, Nodes
from xenbusd_vbd.back.live import LiveDisk
from xenbusd_vbd.backend import VbdBackend


def test_a_paused_disk_is_explained() -> None:
    """Its requests wait until an administrator resumes it."""
    (finding,) = VbdBackend.explain(Nodes({"paused": b"1", "state": b"4"}, {"state": b"4"}))
    assert finding == Finding("the disk", "is paused", "resume it with `xenbusctl resume`")


@pytest.mark.parametrize("backend", [{}, {"paused": b"0"}, {"paused": b"\xff"}, {"pause": b"1"}])
def test_any_other_disk_is_not(backend: dict[str, bytes]) -> None:
    """It was only asked to pause, or never was; the frontend's nodes say nothing of it."""
    assert list(VbdBackend.explain(Nodes(backend, {"paused": b"1"}))) == []


@pytest.mark.parametrize("gone", [False, True])
def test_an_image_server_that_has_gone_is_a_condition(gone: bool) -> None:
    """Only the running driver knows; a device that has not connected has no disk yet."""
    driver = VbdBackend()
    assert list(driver.condition()) == []
    driver._disk = cast("LiveDisk", SimpleNamespace(is_without_server=gone))
    sentences = list(map(str, driver.condition()))
    assert sentences == ["the image server has gone; another is being started, or connected to"] * gone
