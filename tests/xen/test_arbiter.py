"""Arbiter mode: one guest with disks of Linux's own blkback and of ours; and the state after the end of a daemon."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.disks import empty_image, ours
from tests.xen.dom0 import XVDA, Guest, assert_nothing_left, daemon, living, run, sum_of
from xenbusd.arbiter.kernel_bus import KernelBus
from xenbusd.arbiter.uevents import UEVENT_BYTES, open_uevents
from xenbusd.ids import Devid

BUS = KernelBus()
EXCLUSIVE = Path("/etc/modprobe.d/xenbusd.conf")
BLOCK_LOOP = Path(__file__).parent / "inside" / "block-loop"
XVDB = Devid(XVDA + 16)
DISK_BYTES = 64 << 20


@pytest.fixture(autouse=True)
def _sharing() -> Iterator[None]:
    """Remove the blacklist of exclusive mode for the length of a test, with blkback not loaded."""
    kept = EXCLUSIVE.read_bytes()
    EXCLUSIVE.unlink()
    run("modprobe", "loop")
    yield
    EXCLUSIVE.write_bytes(kept)
    BUS.switch_autoprobe(True)
    if "vbd" in BUS.drivers():
        run("rmmod", "xen-blkback")


def linuxs(vdev: str, image: Path) -> str:
    """A disk line that has Linux's blkback serve a disk."""
    return f"script={BLOCK_LOOP},vdev={vdev},access=rw,target={image}"


def driver_of(guest: Guest, devid: Devid) -> str | None:
    """The kernel's driver of a guest's disk."""
    return BUS.driver(f"vbd-{guest.domid}-{devid}")


def state_of(guest: Guest, devid: Devid) -> str:
    """What a disk's backend says its state is."""
    return run("xenstore-read", f"/local/domain/0/backend/vbd/{guest.domid}/{devid}/state").strip()


def heard(uevents: socket.socket) -> bytes:
    """The kernel's log so far."""
    uevents.setblocking(False)
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(uevents.recv(UEVENT_BYTES))
    return b"".join(messages)


def release() -> str:
    """Run the unit's command for after a daemon's end."""
    return run(sys.executable, "-m", "xenbusd", "release", "--arbiter")


def test_one_guest_with_a_disk_of_each(tmp_path: Path) -> None:
    """blkback, loaded by us when it is needed, serves one disk and we the other: a file system on each, sums equal in
    guest and dom0. The kernel binds by itself again when the daemon has stopped."""
    mine, theirs = (empty_image(tmp_path / name, DISK_BYTES) for name in ("mine.img", "theirs.img"))
    guest = Guest("shared", "two_disks", [ours("xvda", mine), linuxs("xvdb", theirs)])
    with daemon("serve", tmp_path / "serve", "--arbiter") as serve:
        assert not BUS.autoprobe
        assert "vbd" not in BUS.drivers()
        files = serve.open_files
        with living(guest) as said:
            assert (driver_of(guest, XVDA), driver_of(guest, XVDB)) == (None, "vbd")
            assert said.count("wanted state 2 ok") == 2
            guest.wait_for(r"^job two_disks ended with 0$", 240)
            guest.wait_gone()
        serve.wait_files(files)
    assert re.search(rf"device\.handed_over.*vbd-\d+-{XVDB}", serve.log)
    assert "warning" not in serve.log
    assert BUS.autoprobe
    for name, image in (("/dev/xvda", mine), ("/dev/xvdb", theirs)):
        told = guest.console.partition(f"next: {name}")[2]
        told_sum = re.search(rf"^([0-9a-f]{{64}})  {name}$", told, re.M)
        assert told_sum is not None
        assert sum_of(image) == told_sum[1]
        run("e2fsck", "-fn", image)
    assert_nothing_left()


def test_killed_daemon_is_released(tmp_path: Path) -> None:
    """After a SIGKILL, `xenbusd release` has the kernel bind by itself, and our connected disk stays ours: a disk of
    blkback's is attached without us, one for us is refused with the reason, and the next daemon goes on."""
    mine, theirs, late = (empty_image(tmp_path / name, DISK_BYTES) for name in ("mine.img", "theirs.img", "late.img"))
    guest = Guest("released", "steady", [ours("xvda", mine)])
    with daemon("serve", tmp_path / "run", "--arbiter") as first, living(guest):
        guest.wait_for(r"^round 5$")
        first.kill()
        assert not BUS.autoprobe
        assert "binds new devices by itself again; handed over: nothing was left" in release()
        assert BUS.autoprobe
        assert "vbd" in BUS.drivers()  # loaded before: loaded from now on, it would take our disk
        assert (driver_of(guest, XVDA), state_of(guest, XVDA)) == (None, "4")
        with open_uevents() as uevents:
            run("xl", "block-attach", guest.name, linuxs("xvdb", theirs))
            assert b"SUBSYSTEM=xen-backend\0" in heard(uevents)  # what an arbiter is woken by
        assert driver_of(guest, XVDB) == "vbd"
        refused = run("xl", "block-attach", guest.name, ours("xvdc", late), fails=True)
        assert "Linux's own backend has taken this disk" in refused
        assert "nothing was left" in release()
        with daemon("serve", tmp_path / "run", "--arbiter") as second:
            assert not BUS.autoprobe
            run("xl", "block-detach", guest.name, "xvdb")
            run("xl", "block-attach", guest.name, linuxs("xvdd", theirs))
            run("xl", "block-detach", guest.name, "xvdd")
            guest.wait_for(r"^job steady ended with 0$", 180)
            guest.wait_gone()
        assert "device.adopted" in second.log
        assert "device.taken" in second.log
        assert "device.handed_over" in second.log
    assert BUS.autoprobe
    assert not re.search("failed|otherwise|error", guest.console), guest.console
    assert sum_of(mine) in guest.console
    assert_nothing_left()
