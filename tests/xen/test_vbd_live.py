"""A guest's disk in use by Linux's blkfront through growth, limits, pauses, and deaths in dom0."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen import build
from tests.xen.disks import attach, detach, empty_image, ours, wait_written
from tests.xen.dom0 import Daemon, assert_nothing_left, device, run, sum_of, until
from tests.xen.domu import Domu
from xenbusd.bus.paths import DeviceId
from xenbusd.control.protocol import DeviceDetails, DeviceTimeline, TimelineEntry

DISK_BYTES = 32 << 20
XVDB, XVDC = 51728, 51744


class Backends:
    """The daemon of this module's tests, which may be killed; another follows it in the same run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.daemon = self._start()

    def _start(self) -> Daemon:
        process = Daemon("serve", self._run_dir)
        process.wait_started()
        return process

    def replace(self) -> None:
        """Kill the daemon, and start the next one."""
        self.daemon.kill()
        self.daemon = self._start()

    def ctl(self, *words: str, fails: bool = False) -> str:
        """Run xenbusctl."""
        argv = [sys.executable, "-m", "xenbusd.cli.ctl", "--run-dir", str(self._run_dir), *words]
        return run(*argv, timeout_s=120, fails=fails)

    def requests(self, id: DeviceId) -> int:
        """How many requests of a disk were taken from its rings."""
        known = json.loads(self.ctl("--json", "show", str(id)))
        return DeviceDetails.from_json(known["daemon"]).counters["requests"]

    def timeline(self, id: DeviceId) -> tuple[TimelineEntry, ...]:
        """A disk's events so far."""
        return DeviceTimeline.from_json(json.loads(self.ctl("--json", "timeline", str(id)))).entries


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """The backends."""
    found = Backends(tmp_path_factory.mktemp("serve"))
    yield found
    found.daemon.stop()


@pytest.fixture(scope="module")
def shared(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domu]:  # noqa: ARG001
    """One guest of two processors for all tests of this module. It has blkfront, with large requests, and no disk."""
    guest = Domu("live")
    with open(guest.config, "a") as file:
        file.write("vcpus = 2\nmemory = 512\n")
    archive = build.Archive()
    build._add_program(archive, build.Image(Path("/")), "/sbin/resize2fs")
    with open(f"/tmp/{guest.name}.cpio", "ab") as file:
        file.write(archive.write(tmp_path_factory.mktemp("programs") / "programs.cpio").read_bytes())
    try:
        guest.start()
        guest.do("load crc32c_generic ext4; insmod /mods/xen-blkfront.ko max_indirect_segments=256")
        yield guest
    finally:
        print(guest.console)
        guest.destroy()
    guest.wait_gone()
    assert_nothing_left()


@pytest.fixture
def guest(shared: Domu, backends: Backends) -> Iterator[Domu]:
    """The shared guest for one test, after which it has no disk, and its kernel has had no error."""
    files = backends.daemon.open_files
    shared.do("dmesg -c >/dev/null")
    yield shared
    assert shared.do("dmesg | grep -iE 'error|fail|blocked for' || true") == ""
    backends.daemon.wait_files(files)
    assert_nothing_left(shared)


def read_again(guest: Domu, what: str) -> str:
    """The sum of a file or disk in the guest, past its page cache."""
    return guest.do(f"echo 3 >/proc/sys/vm/drop_caches; sha256sum {what}").split()[0]


def node(id: DeviceId, key: str) -> str:
    """A node of a disk's backend."""
    return run("xenstore-read", f"{id.backend_path}/{key}").strip()


def wait_size(guest: Domu, size_bytes: int) -> None:
    """Wait until xvdb is so large in the guest."""
    guest.do(
        f"for tenth in $(seq 200); do [ $(cat /sys/block/xvdb/size) = {size_bytes >> 9} ] && break; sleep 0.1; done;"
        f" [ $(cat /sys/block/xvdb/size) = {size_bytes >> 9} ]"
    )


def test_disk_grows(guest: Domu, backends: Backends, tmp_path: Path) -> None:
    """An image that grows under a mounted file system that is written to: the guest's disk grows, with the same ring
    and the same state, and so does its file system; what was written behind the old end is in dom0 (T34)."""
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    attach(guest, ours("xvdb", image))
    id = device("vbd", XVDB, guest.domid)
    guest.do("await xvdb && mkfs.ext4 -q /dev/xvdb && mount -t ext4 /dev/xvdb /disk && busy /disk/busy 4")
    ring = run("xenstore-ls", f"/local/domain/{guest.domid}/device/vbd/{XVDB}")
    before = backends.timeline(id)
    assert before[-1].event == "Connected"
    run("truncate", "-s", str(3 * DISK_BYTES), image)
    wait_size(guest, 3 * DISK_BYTES)
    guest.do("idle && resize2fs /dev/xvdb")
    guest.do("dd if=/dev/urandom of=/disk/file bs=1M count=56 conv=fsync", timeout_s=120)
    read = read_again(guest, "/disk/file")
    guest.do("umount /disk && e2fsck -fn /dev/xvdb")
    assert run("xenstore-ls", f"/local/domain/{guest.domid}/device/vbd/{XVDB}") == ring
    assert node(id, "state") == "4"
    after = backends.timeline(id)
    assert [(entry.actor, entry.event) for entry in after[len(before) :]] == [("backend", "write sectors")]
    detach(guest, "xvdb")
    run("e2fsck", "-fn", image)
    run("debugfs", "-R", f"dump /file {tmp_path}/file", image)
    assert sum_of(tmp_path / "file") == read


def test_device_grows(guest: Domu, tmp_path: Path) -> None:
    """So it is with a device of dom0."""
    run("modprobe", "loop")
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    loop = run("losetup", "--find", "--show", image).strip()
    try:
        attach(guest, ours("xvdb", loop))
        guest.do("await xvdb")
        run("truncate", "-s", str(2 * DISK_BYTES), image)
        run("losetup", "--set-capacity", loop)
        wait_size(guest, 2 * DISK_BYTES)
        guest.do("dd if=/dev/urandom of=/dev/xvdb bs=1M count=64 conv=fsync", timeout_s=120)
        read = read_again(guest, "/dev/xvdb")
        detach(guest, "xvdb")
        assert sum_of(loop) == read
    finally:
        run("losetup", "--detach", loop)


def test_pause(guest: Domu, backends: Backends, tmp_path: Path) -> None:
    """`xenbusctl pause` under a writing guest: dom0 may lock the image and copy it, and nobody writes to it; resuming
    is refused until dom0 lets go of it; then the guest goes on, and has not noticed. Requests of a megabyte."""
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    attach(guest, ours("xvdb", image))
    name = str(device("vbd", XVDB, guest.domid))
    assert guest.do("await xvdb && cat /sys/block/xvdb/queue/max_sectors_kb") == "1024"
    guest.do("busy /dev/xvdb 32")
    wait_written(image)
    assert backends.ctl("pause", name) == f"{name} is paused\n"
    copy = tmp_path / "copy.img"
    with open(image, "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        run("cp", image, copy)
        assert f"{image} is in use" in backends.ctl("resume", name, fails=True)
        assert sum_of(copy) == sum_of(image)
    assert backends.ctl("resume", name) == f"{name} is resumed\n"
    wait_written(image)
    guest.do("idle")
    assert read_again(guest, "/dev/xvdb") == sum_of(image) != sum_of(copy)
    detach(guest, "xvdb")


@pytest.mark.parametrize("limit", ["iops=1", "bandwidth=4K"])
def test_limits(guest: Domu, backends: Backends, tmp_path: Path, limit: str) -> None:
    """`xenbusctl set` slows one disk down, to a request of 4 KiB a second, and the other one not; 0 lifts it."""
    slow, fast = (device("vbd", devid, guest.domid) for devid in (XVDB, XVDC))
    for vdev in ("xvdb", "xvdc"):
        attach(guest, ours(vdev, empty_image(tmp_path / f"{vdev}.img", DISK_BYTES)))
        guest.do(f"await {vdev}")
    backends.ctl("set", str(slow), limit)
    write = "dd if=/dev/urandom of=/dev/{} bs=4k count=256 oflag=direct 2>/dev/null"
    guest.do(f"rm -f /tmp/slow; ({write.format('xvdb')} && touch /tmp/slow) &")
    began = time.monotonic()
    before = [backends.requests(id) for id in (slow, fast)]
    guest.do(write.format("xvdc"))
    after = [backends.requests(id) for id in (slow, fast)]
    lasted_s = time.monotonic() - began
    print(f"in {lasted_s:.0f} s: {after[0] - before[0]} requests with {limit}, {after[1] - before[1]} without")
    assert 0 < after[0] - before[0] <= lasted_s + 2  # what had been saved up, and the one that waits
    assert after[1] - before[1] >= 256
    key = limit.partition("=")[0]
    backends.ctl("set", str(slow), f"{key}=0")
    guest.do("for tenth in $(seq 300); do [ -e /tmp/slow ] && break; sleep 0.1; done; [ -e /tmp/slow ]")
    assert node(slow, key) == "0"
    for vdev in ("xvdb", "xvdc"):
        assert read_again(guest, f"/dev/{vdev}") == sum_of(tmp_path / f"{vdev}.img")
        detach(guest, vdev)


def qemu_nbd(serve: Daemon) -> int:
    """The one image server of a daemon."""
    return int(run("pgrep", "--parent", str(serve.pid), "qemu-nbd"))


def test_deaths_behind_a_qcow2(guest: Domu, backends: Backends, tmp_path: Path) -> None:
    """A guest writes to a file system on a qcow2 image while qemu-nbd is killed; then the daemon is, and followed by
    another; then that one is paused, killed, and the next one resumed. The guest notices nothing, and nothing is
    lost."""
    image = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, str(DISK_BYTES))
    attach(guest, ours("xvdb", f"qcow2:{image}"))
    name = str(device("vbd", XVDB, guest.domid))
    guest.do("await xvdb && mkfs.ext4 -q /dev/xvdb && mount -t ext4 /dev/xvdb /disk")
    guest.do("head -c 4194304 /dev/urandom >/disk/file && sync && busy /disk/busy 4")
    wait_written(image)

    first = qemu_nbd(backends.daemon)
    os.kill(first, signal.SIGKILL)
    until(lambda: True if not Path(f"/proc/{first}").exists() else None, "end of qemu-nbd")
    wait_written(image)
    assert qemu_nbd(backends.daemon) != first

    backends.replace()
    wait_written(image)
    assert "device.adopted" in backends.daemon.log

    backends.ctl("pause", name)
    run("qemu-img", "check", "-f", "qcow2", image)
    backends.replace()
    assert node(device("vbd", XVDB, guest.domid), "paused") == "1"
    run("qemu-img", "check", "-f", "qcow2", image)
    backends.ctl("resume", name)
    wait_written(image)

    guest.do("idle")
    sums = [read_again(guest, f"/disk/{file}") for file in ("file", "busy")]
    guest.do("umount /disk && e2fsck -fn /dev/xvdb")
    disk = read_again(guest, "/dev/xvdb")
    detach(guest, "xvdb")
    raw = tmp_path / "disk.img"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
    assert sum_of(raw) == disk
    run("e2fsck", "-fn", raw)
    for file, known in zip(("file", "busy"), sums, strict=True):
        run("debugfs", "-R", f"dump /{file} {tmp_path / file}", raw)
        assert sum_of(tmp_path / file) == known
