"""Images that lead to other files, as qemu-img describes them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.doubles.programs import install, qemu_img
from xenbusd.api import ResourceError
from xenbusd_vbd.image import chain as image_chain
from xenbusd_vbd.image.chain import check_chain
from xenbusd_vbd.image.formats import Target

TOP = Target("qcow2", "/top", True)


def backing(path: str, format: str | None) -> dict[str, object]:
    """What qemu-img says of an image with a backing file."""
    said: dict[str, object] = {"backing-filename": path, "full-backing-filename": path}
    return said | {"backing-filename-format": format} if format else said


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"format-specific": {"type": "qcow2", "data": {"compat": "1.1"}}},
        {"format-specific": {"type": "vmdk", "data": {"extents": [{"filename": "/top"}]}}},
    ],
)
async def test_an_image_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: dict[str, object]) -> None:
    """It is served, whatever the configuration says."""
    install(tmp_path, monkeypatch, "qemu-img", qemu_img({"/top": info}))
    await check_chain(TOP, allowed=False)
    await check_chain(TOP, allowed=True)


@pytest.mark.parametrize(
    "info",
    [
        backing("/etc/shadow", "raw"),
        {"format-specific": {"type": "qcow2", "data": {"data-file": "/etc/shadow"}}},
        {"format-specific": {"type": "vmdk", "data": {"extents": [{"filename": "/top"}, {"filename": "/etc/shadow"}]}}},
    ],
)
async def test_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: dict[str, object]) -> None:
    """The error names the other file, and the option that allows it."""
    install(tmp_path, monkeypatch, "qemu-img", qemu_img({"/top": info}))
    with pytest.raises(ResourceError, match=r"/etc/shadow; .* backing_files = true") as caught:
        await check_chain(TOP, allowed=False)
    assert caught.value.errno == errno.EPERM
    await check_chain(TOP, allowed=True)


@pytest.mark.parametrize(
    ("below", "sentence"),
    [
        ({"/middle": backing("/bottom", "raw")}, None),
        ({"/middle": backing("/bottom", None)}, "no stated format"),
        ({"/middle": backing("nbd://host/x", "qcow2")}, "nbd://host/x"),
        ({"/middle": backing("/bottom", "luks")}, "format luks"),
        ({"/middle": backing("/top", "qcow2")}, "over 32"),
        ({}, "not in that format"),
    ],
)
async def test_every_step_has_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: dict[str, dict[str, object]], sentence: str | None
) -> None:
    """A chain is allowed as a whole, and still nothing in it is probed, nor fetched from elsewhere."""
    install(tmp_path, monkeypatch, "qemu-img", qemu_img({"/top": backing("/middle", "qcow2"), **below}))
    if sentence is None:
        await check_chain(TOP, allowed=True)
    else:
        with pytest.raises(ResourceError, match=sentence):
            await check_chain(TOP, allowed=True)


async def test_a_description_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The author of an image decides how much there is to describe, and must not fill the daemon's memory."""
    monkeypatch.setattr(image_chain, "DESCRIPTION_MAX", 10)
    install(tmp_path, monkeypatch, "qemu-img", "print('x' * 11)")
    with pytest.raises(ResourceError, match="in over 10 bytes") as caught:
        await check_chain(TOP, allowed=True)
    assert caught.value.errno == errno.EFBIG


async def test_an_inspection_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extent may be a pipe: qemu-img is killed after a while."""
    monkeypatch.setattr(image_chain, "QEMU_IMG_S", 0.05)
    install(tmp_path, monkeypatch, "qemu-img", "import signal\nsignal.pause()\n")
    with pytest.raises(ResourceError, match="not described") as caught:
        await check_chain(TOP, allowed=True)
    assert caught.value.errno == errno.ETIMEDOUT
