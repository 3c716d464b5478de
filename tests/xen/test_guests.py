"""Real PV guests, made by xl, with Linux's own blkfront at the other end of our backend."""

from __future__ import annotations

import re
from datetime import datetime
from math import inf
from pathlib import Path

import pytest

from tests.xen.disks import check_ext4, empty_image, ours
from tests.xen.dom0 import Daemon, Guest, assert_nothing_left, living, random_image, sum_of
from tests.xen.domu import Domu
from tests.xen.xl import LIMIT_S, xl
from xenbusd.bus.state import State

SIXTEEN = [f"xvd{letter}" for letter in "abcdefghijklmnop"]


@pytest.mark.usefixtures("each_store")
def test_ext4_on_blkfront(serve: Daemon, tmp_path: Path) -> None:
    """`xl create`, then Linux's blkfront makes, fills, syncs and checks a file system on our disk; sums are equal in
    guest and dom0, and nothing is left of either end."""
    image = empty_image(tmp_path / "disk.img")
    files = serve.open_files
    guest = Guest("ext4", "ext4", [ours("xvda", image)])
    with living(guest) as said:
        assert "wanted state 2 ok" in said
        guest.wait_for(r"^job ext4 ended with 0$", 240)
        guest.wait_gone()
    check_ext4(guest.console, image, tmp_path / "file")
    serve.wait_files(files)
    assert_nothing_left()


@pytest.mark.usefixtures("each_store")
def test_disk_comes_and_goes_under_load(serve: Daemon, tmp_path: Path) -> None:
    """`xl block-attach` and `block-detach` of a second disk, then `xl destroy` while the first is being written."""
    files = serve.open_files
    guest = Guest("follow", "follow", [ours("xvda", empty_image(tmp_path / "a.img"))])
    with living(guest):
        guest.wait_for(r"^disks: xvda \.$")
        attached = xl("block-attach", guest.name, ours("xvdb", empty_image(tmp_path / "b.img")))
        attached.assert_reached(State.INIT_WAIT)
        guest.wait_for(r"^disks: xvda xvdb \.$")
        xl("block-detach", guest.name, "xvdb").assert_reached(State.CLOSED)
        guest.wait_for(r"^disks: xvda xvdb \.$\n^disks: xvda \.$")
        xl("destroy", guest.name).assert_reached(State.CLOSED)
        guest.wait_gone()
    serve.wait_files(files)
    assert_nothing_left()


@pytest.mark.usefixtures("serve")
def test_missing_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    """`xl create` with an image that is not there fails, says why, and leaves nothing."""
    guest = Guest("missing", "ext4", [ours("xvda", tmp_path / "nowhere.img")])
    said = guest.create(fails=True)
    guest.destroy()
    assert "nowhere.img does not exist" in said
    assert_nothing_left()


def test_two_guests_at_once(serve: Daemon, tmp_path: Path) -> None:
    """Two guests write their disks at the same time; each image holds what its guest wrote, and no more."""
    files = serve.open_files
    images = [empty_image(tmp_path / f"{number}.img", 64 << 20) for number in range(2)]
    guests = [Domu(f"twin{number}", [ours("xvda", images[number])]) for number in range(2)]
    try:
        for guest in guests:
            guest.start().assert_reached(State.INIT_WAIT)
            guest.do("load xen-blkfront; await xvda")
        told = [
            guest.tell("dd if=/dev/urandom of=/dev/xvda bs=1M count=64 conv=fsync && sha256sum /dev/xvda")
            for guest in guests
        ]
        sums = [guest.answer(each, timeout_s=180) for guest, each in zip(guests, told, strict=True)]
        for each, image in zip(sums, images, strict=True):
            assert sum_of(image) in each
        assert sum_of(images[0]) != sum_of(images[1])
        for guest in guests:
            xl("destroy", guest.name).assert_reached(State.CLOSED)
            guest.wait_gone()
    finally:
        for guest in guests:
            guest.destroy()
    serve.wait_files(files)
    assert_nothing_left()


def init_waits_s(log: str, domid: int) -> list[float]:
    """How long each disk of a guest took us from its appearance to InitWait, as our log tells."""

    def times(event: str) -> dict[str, datetime]:
        found = re.findall(rf"^(\S+)Z .*{event}.* device=(vbd-{domid}-\d+)(?: new=InitWait)? ", log, re.M)
        return {device: datetime.fromisoformat(when) for when, device in found}

    appeared, reached = times(r"device\.appeared"), times("state.switched(?=.*new=InitWait)")
    print([f"{device} {(reached[device] - appeared[device]).total_seconds():.2f} s" for device in reached])
    return [(reached[device] - appeared[device]).total_seconds() for device in reached]


def test_sixteen_disks(serve: Daemon, tmp_path: Path) -> None:
    """A guest made with sixteen disks finds each with its own data; one is detached; `xl destroy` takes the others."""
    files = serve.open_files
    images = {name: random_image(tmp_path / f"{name}.img", 1 << 20) for name in SIXTEEN}
    guest = Domu("sixteen", [ours(name, image) for name, image in images.items()])
    try:
        # libxl makes all sixteen before it reads any: its own waits show only that it did not give up.
        guest.start().assert_reached(State.INIT_WAIT, 16, within_s=inf)
        took_s = init_waits_s(serve.log, guest.domid)
        assert len(took_s) == 16
        assert max(took_s) <= LIMIT_S[State.INIT_WAIT], took_s
        guest.do(f"load xen-blkfront; for disk in {' '.join(SIXTEEN)}; do await $disk || exit; done")
        sums = guest.do("sha256sum /dev/xvd?").splitlines()
        assert sums == [f"{sum_of(image)}  /dev/{name}" for name, image in images.items()]
        xl("block-detach", guest.name, "xvdh").assert_reached(State.CLOSED)
        guest.do("await_gone xvdh")
        left = guest.do("sha256sum /dev/xvd?").splitlines()
        assert left == [line for line in sums if not line.endswith("xvdh")]
        xl("destroy", guest.name).assert_reached(State.CLOSED, 15)
        guest.wait_gone()
    finally:
        guest.destroy()
    serve.wait_files(files)
    assert_nothing_left()
