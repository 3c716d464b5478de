"""Disks of all kinds come to a living guest by `xl block-attach`, and leave it by `block-detach`."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.disks import attach, detach, empty_image, ours, wait_written
from tests.xen.dom0 import Daemon, Guest, assert_nothing_left, random_image, run, sum_of, until
from tests.xen.domu import Domu
from tests.xen.xl import xl
from xenbusd.bus.state import State

DISK_BYTES = 16 << 20
FILLED = "dd if=/dev/urandom of={} bs=1M count=16 conv=fsync"
"""A guest's command that writes a whole disk."""


@pytest.fixture(scope="module")
def shared(serve: Daemon) -> Iterator[Domu]:  # noqa: ARG001  # it has to be there first
    """One guest for all tests of this module. It has blkfront, and no disk."""
    guest = Domu("attach")
    try:
        guest.start()
        guest.do("load xen-blkfront crc32c_generic ext4")
        yield guest
    finally:
        print(guest.console)
        guest.destroy()
    guest.wait_gone()
    assert_nothing_left()


@pytest.fixture
def guest(shared: Domu, serve: Daemon) -> Iterator[Domu]:
    """The shared guest for one test, after which it has no disk, and the daemon as many files open as before."""
    files = serve.open_files
    yield shared
    serve.wait_files(files)
    assert_nothing_left(shared)


def ext4_image(path: Path) -> Path:
    """An image with a file system, and in it a file `greeting`."""
    folder = path.with_suffix(".d")
    folder.mkdir()
    (folder / "greeting").write_text("hello from dom0\n")
    run("mke2fs", "-q", "-t", "ext4", "-d", folder, empty_image(path, DISK_BYTES))
    return path


def node(guest: Guest, devid: int, key: str) -> str:
    """A node of a disk's backend."""
    return run("xenstore-read", f"/local/domain/0/backend/vbd/{guest.domid}/{devid}/{key}").strip()


def used_kb(image: Path) -> int:
    """What an image takes of its file system."""
    return int(run("du", "-k", image).split()[0])


def test_read_only_disk(guest: Domu, tmp_path: Path) -> None:
    """A disk attached read-only is so in the guest: it mounts and reads, and no write gets through."""
    image = ext4_image(tmp_path / "disk.img")
    before = sum_of(image)
    attach(guest, ours("xvdb", image, "ro"))
    assert guest.do("await xvdb && blockdev --getro /dev/xvdb") == "1"
    guest.do("blockdev --setrw /dev/xvdb")  # what a hostile guest would do
    guest.do(FILLED.format("/dev/xvdb"), fails=True)
    assert guest.do("mount -t ext4 -o ro /dev/xvdb /disk && cat /disk/greeting") == "hello from dom0"
    guest.do("umount /disk")
    detach(guest, "xvdb")
    assert sum_of(image) == before


def test_cdrom(guest: Domu, tmp_path: Path) -> None:
    """A CD-ROM drive tells the guest what it is by its flags, and is read."""
    image = random_image(tmp_path / "cd.iso", 1 << 20)
    attach(guest, ours("xvdc", image, "ro", "devtype=cdrom"))
    assert guest.do("await xvdc && cat /sys/block/xvdc/ro /sys/block/xvdc/removable").split() == ["1", "1"]
    assert node(guest, 51744, "info") == "7"  # VDISK_CDROM | VDISK_REMOVABLE | VDISK_READONLY
    assert sum_of(image) in guest.do("sha256sum /dev/xvdc")
    detach(guest, "xvdc")


def test_discard(guest: Domu, tmp_path: Path) -> None:
    """What the guest discards, by blkdiscard and by fstrim, is given back to dom0's file system."""
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    attach(guest, ours("xvdb", image))
    guest.do("await xvdb && " + FILLED.format("/dev/xvdb"))
    full_kb = used_kb(image)
    assert full_kb >= DISK_BYTES >> 10
    guest.do("blkdiscard /dev/xvdb")
    assert used_kb(image) == 0
    assert guest.do("sha256sum /dev/xvdb").split()[0] == sum_of(image)
    guest.do("mkfs.ext4 -q -E nodiscard /dev/xvdb && mount -t ext4 /dev/xvdb /disk")
    guest.do("dd if=/dev/urandom of=/disk/file bs=1M count=8 conv=fsync")
    with_file_kb = used_kb(image)
    guest.do("rm /disk/file && sync && fstrim /disk && umount /disk")
    assert used_kb(image) <= with_file_kb - (7 << 10)
    run("e2fsck", "-fn", image)
    detach(guest, "xvdb")


def test_block_device(guest: Domu, tmp_path: Path) -> None:
    """The target may be a block device: what the guest writes is on it."""
    run("modprobe", "loop")
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    loop = run("losetup", "--find", "--show", image).strip()
    try:
        attach(guest, ours("xvdb", loop))
        written = guest.do(f"await xvdb && {FILLED.format('/dev/xvdb')} && sha256sum /dev/xvdb")
        detach(guest, "xvdb")
        assert sum_of(loop) in written
    finally:
        run("losetup", "--detach", loop)
    assert sum_of(image) in written


def test_target_that_does_not_exist(guest: Domu, tmp_path: Path) -> None:
    """`xl block-attach` of nothing fails with the reason and leaves what xl leaves: `block-detach` takes it away, and
    the disk can be attached once its image is there."""
    image = tmp_path / "late.img"
    said = xl("block-attach", guest.name, ours("xvdb", image), fails=True)
    said.assert_reached(State.INIT_WAIT)
    assert f"{image} does not exist" in said
    assert node(guest, 51728, "hotplug-status") == "error"
    detach(guest, "xvdb")
    empty_image(image, DISK_BYTES)
    attach(guest, ours("xvdb", image))
    guest.do("await xvdb")
    detach(guest, "xvdb")


def test_target_in_use(guest: Domu, tmp_path: Path) -> None:
    """An image that a program in dom0 holds, or that is a disk already, is refused with the reason, and not harmed."""
    image = random_image(tmp_path / "disk.img", DISK_BYTES)
    before = sum_of(image)
    with open(image, "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        said = xl("block-attach", guest.name, ours("xvdb", image), fails=True)
        assert f"{image} is in use" in said
        detach(guest, "xvdb")
    attach(guest, ours("xvdb", image))
    guest.do("await xvdb")
    for access in ("rw", "ro"):
        said = xl("block-attach", guest.name, ours("xvdc", image, access), fails=True)
        assert f"{image} is in use" in said
        detach(guest, "xvdc")
    assert before in guest.do("sha256sum /dev/xvdb")
    detach(guest, "xvdb")


def test_readers_share_a_target(guest: Domu, tmp_path: Path) -> None:
    """Two read-only disks may have one image; a third that would write may not."""
    image = random_image(tmp_path / "disk.img", 1 << 20)
    for vdev in ("xvdb", "xvdc"):
        attach(guest, ours(vdev, image, "ro"))
        assert sum_of(image) in guest.do(f"await {vdev} && sha256sum /dev/{vdev}")
    assert f"{image} is in use" in xl("block-attach", guest.name, ours("xvdd", image), fails=True)
    for vdev in ("xvdd", "xvdb", "xvdc"):
        detach(guest, vdev)


def test_mounted_disk_is_detached(guest: Domu, tmp_path: Path) -> None:
    """`xl block-detach` of a disk with a mounted file system that is written to: Linux 6.1 lets go of it at once, its
    I/O fails in the guest, dom0 is clean; afterwards the same image is attached and mounted again."""
    image = ext4_image(tmp_path / "disk.img")
    attach(guest, ours("xvdb", image))
    guest.do("await xvdb && mount -t ext4 /dev/xvdb /disk && busy /disk/file 4")
    wait_written(image)
    detach(guest, "xvdb")
    guest.do("idle", fails=True)
    _mount_again(guest, image)


def test_detach_by_force(guest: Domu, tmp_path: Path) -> None:
    """`xl block-detach --force` does not ask the guest, whose mounted disk is gone: the next I/O of the guest fails."""
    image = ext4_image(tmp_path / "disk.img")
    attach(guest, ours("xvdb", image))
    guest.do("await xvdb && mount -t ext4 /dev/xvdb /disk && cat /disk/greeting && sync")
    detach(guest, "xvdb", "--force")
    guest.do("await_gone xvdb && dd if=/dev/zero of=/disk/file bs=1M count=1 conv=fsync", fails=True)
    _mount_again(guest, image)


def test_detach_by_force_under_load(guest: Domu, tmp_path: Path) -> None:
    """So it is with a guest that writes: it gets its answers until it is quiet, and nothing in it hangs."""
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    attach(guest, ours("xvdb", image))
    guest.do("await xvdb && busy /dev/xvdb 16")
    wait_written(image)
    detach(guest, "xvdb", "--force")
    guest.do("await_gone xvdb; idle; rm -f /dev/xvdb")  # a new file, if the writer had just begun again
    attach(guest, ours("xvdb", image))
    guest.do(f"await xvdb && {FILLED.format('/dev/xvdb')}")
    assert sum_of(image) in guest.do("sha256sum /dev/xvdb")
    detach(guest, "xvdb")


def _mount_again(guest: Domu, image: Path) -> None:
    """After the guest lost a mounted disk, it may have it back."""
    guest.do("umount /disk; await_gone xvdb")
    attach(guest, ours("xvdb", image))
    assert "hello from dom0" in guest.do("await xvdb && mount -t ext4 /dev/xvdb /disk && cat /disk/greeting")
    guest.do("umount /disk && e2fsck -fn /dev/xvdb")
    detach(guest, "xvdb")


def test_guest_is_paused(guest: Domu, tmp_path: Path) -> None:
    """`xl pause` in the middle of I/O and `xl unpause` later: the guest goes on, and nothing is lost."""
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    attach(guest, ours("xvdb", image))
    guest.do("await xvdb && busy /dev/xvdb 16")
    wait_written(image)
    xl("pause", guest.name)
    assert "p" in run("xl", "list", guest.name).splitlines()[-1].split()[-2]
    # What the daemon had taken from the ring it still writes.
    stopped_at = until(lambda: before if (before := sum_of(image)) == sum_of(image) else None, "end of the writes")
    assert node(guest, 51728, "state") == "4"
    assert sum_of(image) == stopped_at
    xl("unpause", guest.name)
    wait_written(image)
    assert guest.do("idle && sha256sum /dev/xvdb").split()[0] == sum_of(image) != stopped_at
    detach(guest, "xvdb")


@pytest.mark.usefixtures("guest")
def test_guest_that_never_loads_blkfront(tmp_path: Path) -> None:
    """A guest without blkfront gets and loses a disk, and is destroyed with another one, as any other guest."""
    blind = Domu("blind", [ours("xvda", empty_image(tmp_path / "a.img"))])
    try:
        blind.start().assert_reached(State.INIT_WAIT)
        for options in ([], ["--force"]):
            attach(blind, ours("xvdb", empty_image(tmp_path / "b.img")))
            detach(blind, "xvdb", *options)
        assert blind.do("ls /sys/block") == ""
        xl("destroy", blind.name).assert_reached(State.CLOSED)
        blind.wait_gone()
    finally:
        blind.destroy()


@pytest.fixture
def blkfront() -> Iterator[None]:
    """Linux's frontend in dom0 itself."""
    run("modprobe", "xen-blkfront")
    yield
    run("rmmod", "xen-blkfront")


@pytest.mark.usefixtures("guest", "blkfront")
def test_disk_of_dom0_itself(tmp_path: Path) -> None:
    """`xl block-attach 0`, as for a bootloader that looks into a guest's disk: the disk is in dom0, and leaves it."""
    image = ext4_image(tmp_path / "disk.img")
    xl("block-attach", "0", ours("xvdz", image)).assert_reached(State.INIT_WAIT)
    disk = Path("/dev/xvdz")
    until(lambda: True if disk.is_block_device() else None, str(disk))
    run("mount", "-t", "ext4", disk, "/mnt")
    assert Path("/mnt/greeting").read_text() == "hello from dom0\n"
    Path("/mnt/answer").write_text("hello from dom0 to itself\n")
    run("umount", "/mnt")
    xl("block-detach", "0", "xvdz").assert_reached(State.CLOSED)
    until(lambda: None if disk.exists() else True, f"end of {disk}")
    assert run("debugfs", "-R", "cat /answer", image).endswith("hello from dom0 to itself\n")
