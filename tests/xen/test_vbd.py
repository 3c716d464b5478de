"""The features that Linux's blkfront negotiates with our disks, and the kinds of images behind them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.disks import attach, check_ext4, detach, empty_image, ours
from tests.xen.dom0 import Daemon, assert_nothing_left, random_image, run, sum_of, until
from tests.xen.domu import Domu
from xenbusd_vbd.back.pages import PERSISTENT_MAX

DISK_BYTES = 48 << 20
RING_PAGES = 16
PROCESSORS = 2
ANSWERS_AT_ONCE = 8 * 33
"""Pages of the requests that the daemon begins before it looks whether too many are mapped: 8, each with 32 pages of
data and one that lists them."""

EXT4 = (
    "mkfs.ext4 -q {options} /dev/xvdb && mount -t ext4 /dev/xvdb /disk"
    " && head -c 8388608 /dev/urandom >/disk/file && sync && sha256sum /disk/file"
    " && umount /disk && e2fsck -fn /dev/xvdb && echo 3 >/proc/sys/vm/drop_caches && sha256sum /dev/xvdb"
)


@pytest.fixture(scope="module")
def shared(serve: Daemon) -> Iterator[Domu]:  # noqa: ARG001  # it has to be there first
    """One guest of two processors for all tests of this module. It has blkfront, with large rings, and no disk."""
    guest = Domu("vbd")
    with open(guest.config, "a") as file:
        file.write(f"vcpus = {PROCESSORS}\nmemory = 768\n")
    try:
        guest.start()
        guest.do("load crc32c_generic ext4; insmod /mods/xen-blkfront.ko max_ring_page_order=4")
        yield guest
    finally:
        print(guest.console)
        guest.destroy()
    guest.wait_gone()
    assert_nothing_left()


@pytest.fixture
def guest(shared: Domu, serve: Daemon) -> Iterator[Domu]:
    """The shared guest for one test, after which it has no disk, and the daemon neither files nor pages of it."""
    files = serve.open_files
    yield shared
    serve.wait_files(files)
    assert mapped_pages(serve) == 0
    assert_nothing_left(shared)


def mapped_pages(serve: Daemon) -> int:
    """How many pages of guests the daemon has mapped."""
    lines = [line for line in Path(f"/proc/{serve.pid}/maps").read_text().splitlines() if "gntdev" in line]
    bounds = [line.split()[0].split("-") for line in lines]
    return sum(int(end, 16) - int(begin, 16) for begin, end in bounds) // 4096


def direct_files(serve: Daemon) -> list[str]:
    """The files that the daemon has open with O_DIRECT."""
    found = []
    for link in Path(f"/proc/{serve.pid}/fd").iterdir():
        flags = re.findall(r"^flags:\s+([0-7]+)$", (link.parents[1] / "fdinfo" / link.name).read_text(), re.M)
        if int(flags[0], 8) & os.O_DIRECT:
            found.append(os.readlink(link))
    return found


def nodes(guest: Domu, side: str) -> dict[str, str]:
    """All nodes of xvdb's directory at one side, by their paths in it."""
    ends = {
        "backend": f"/local/domain/0/backend/vbd/{guest.domid}/51728",
        "device": f"/local/domain/{guest.domid}/device/vbd/51728",
    }
    said = run("xenstore-ls", "-f", ends[side])
    return dict(re.findall(rf'^{ends[side]}/(\S+) = "(.*)"$', said, re.M))


def about(guest: Domu, key: str) -> str:
    """The guest kernel's attributes of xvdb."""
    return guest.do(f"cat /sys/block/xvdb/{key}")


def test_what_blkfront_negotiates(guest: Domu, serve: Daemon, tmp_path: Path) -> None:
    """A queue for each processor, rings of 16 pages, persistent grants, indirect descriptors, flushes: all agreed on
    with Linux. Much is written at once by both processors, then single blocks here and there, and dom0 reads the same;
    of the guest's pages no more stay mapped than may."""
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    attach(guest, ours("xvdb", image))
    guest.do("await xvdb")
    said = guest.do("dmesg | grep 'blkfront: xvdb:' | tail -n 1")
    for agreed in ("flush diskcache: enabled", "persistent grants: enabled", "indirect descriptors: enabled"):
        assert agreed in said
    assert guest.do("ls /sys/block/xvdb/mq").split() == [str(number) for number in range(PROCESSORS)]
    offered = nodes(guest, "device")
    assert (offered["multi-queue-num-queues"], offered["ring-page-order"]) == (str(PROCESSORS), "4")
    for queue in range(PROCESSORS):
        refs = {offered[f"queue-{queue}/ring-ref{page}"] for page in range(RING_PAGES)}
        assert len(refs) == RING_PAGES
        assert f"queue-{queue}/event-channel" in offered

    written = guest.tell(
        "head -c 8388608 /dev/urandom >/tmp/data;"
        "(taskset 1 dd if=/dev/urandom of=/dev/xvdb bs=1M count=24 conv=fsync 2>/dev/null) &"
        "taskset 2 dd if=/dev/urandom of=/dev/xvdb bs=1M count=24 seek=24 conv=fsync && wait &&"
        "for block in $(seq 0 63); do dd if=/tmp/data of=/dev/xvdb bs=4k skip=$block seek=$((RANDOM % 12288)) count=1"
        " oflag=direct 2>/dev/null || exit; done"
    )
    most = 0

    def watch() -> bool | None:
        nonlocal most
        most = max(most, mapped_pages(serve))
        return True if f"= {written.number} " in guest.console[written.since :] else None

    until(watch, "end of the writes", 120)
    guest.answer(written)
    read = guest.do("echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/xvdb", timeout_s=120)
    assert sum_of(image) in read
    for_rings = PROCESSORS * RING_PAGES
    left = mapped_pages(serve) - for_rings
    print(f"pages mapped: {most - for_rings} at most, {left} in the end")
    assert 0 < left <= PROCESSORS * PERSISTENT_MAX
    assert most - for_rings <= PROCESSORS * (PERSISTENT_MAX + ANSWERS_AT_ONCE)
    detach(guest, "xvdb")


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_block_device_goes_past_the_page_cache(guest: Domu, serve: Daemon, tmp_path: Path, block_bytes: int) -> None:
    """A device of dom0 is written with O_DIRECT. Whatever the size of its blocks, the guest sees sectors of 512 bytes,
    and may write single ones: the rest of a block stays what it was (T35). Discards reach the device."""
    run("modprobe", "loop")
    image = random_image(tmp_path / "disk.img", DISK_BYTES)
    loop = run("losetup", "--sector-size", str(block_bytes), "--find", "--show", image).strip()
    try:
        attach(guest, ours("xvdb", loop))
        guest.do("await xvdb")
        assert loop in direct_files(serve)
        assert about(guest, "queue/logical_block_size") == "512"
        assert about(guest, "queue/physical_block_size") == str(block_bytes)
        expected = bytearray(image.read_bytes())
        expected[512 * 3 : 512 * 8] = bytes(512 * 5)
        guest.do("dd if=/dev/zero of=/dev/xvdb bs=512 seek=3 count=5 oflag=direct")
        assert Path(loop).read_bytes() == expected
        said = guest.do(EXT4.format(options="-b 1024"))
        assert "I/O error" not in said
        granularity = Path(f"/sys/block/{Path(loop).name}/queue/discard_granularity").read_text().strip()
        assert about(guest, "queue/discard_granularity") == granularity
        check_ext4(said, Path(loop), tmp_path / "file")
        guest.do("blkdiscard /dev/xvdb")
        assert run("du", "-k", image).split()[0] == "0"
        detach(guest, "xvdb")
    finally:
        run("losetup", "--detach", loop)


def test_file_goes_past_the_page_cache(guest: Domu, serve: Daemon, tmp_path: Path) -> None:
    """A file on a disk's file system is written with O_DIRECT, and holds what the guest wrote."""
    run("modprobe", "loop")
    folder = tmp_path / "mount"
    folder.mkdir()
    disk = empty_image(tmp_path / "disk.img", 2 * DISK_BYTES)
    run("mke2fs", "-q", "-t", "ext4", disk)
    run("mount", "-o", "loop", disk, folder)
    try:
        image = empty_image(folder / "disk.img", DISK_BYTES)
        attach(guest, ours("xvdb", image))
        guest.do("await xvdb")
        assert str(image) in direct_files(serve)
        check_ext4(guest.do(EXT4.format(options="")), image, tmp_path / "file")
        detach(guest, "xvdb")
    finally:
        run("umount", folder)
    run("e2fsck", "-fn", disk)


def test_no_discard(guest: Domu, tmp_path: Path) -> None:
    """With xl's `no-discard` the guest's disk has none; `direct-io-safe` is heard; and the disk works."""
    image = random_image(tmp_path / "disk.img", 1 << 20)
    attach(guest, ours("xvdb", image, "rw", "no-discard", "direct-io-safe"))
    guest.do("await xvdb")
    said = nodes(guest, "backend")
    assert (said["discard-enable"], said["direct-io-safe"]) == ("0", "1")
    assert not [key for key in said if key.startswith(("feature-discard", "discard-granularity"))]
    assert about(guest, "queue/discard_max_bytes") == "0"
    guest.do("blkdiscard /dev/xvdb", fails=True)
    assert sum_of(image) in guest.do("sha256sum /dev/xvdb")
    detach(guest, "xvdb")


@pytest.mark.parametrize(("format", "driver"), [("vmdk", "vmdk"), ("vhd", "vpc")])
def test_images_of_other_programs(guest: Domu, tmp_path: Path, format: str, driver: str) -> None:
    """The guest reads from a VMDK or a VHD what was in the raw image that it was made of."""
    raw = random_image(tmp_path / "disk.img", 4 << 20)
    image = tmp_path / f"disk.{format}"
    run("qemu-img", "convert", "-f", "raw", "-O", driver, raw, image)
    attach(guest, ours("xvdb", f"{format}:{image}", "ro"))
    guest.do("await xvdb")
    assert sum_of(raw) in guest.do(f"head -c {4 << 20} /dev/xvdb | sha256sum")
    detach(guest, "xvdb")
