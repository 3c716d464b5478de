"""Our frontend on Linux's own blkback: several queues, rings of several pages, indirect requests, discard, sectors of 4
KiB, and a disk that grows under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.disks import check_ext4, empty_image
from tests.xen.dom0 import Guest, assert_nothing_left, run, sum_of
from tests.xen.domu import Domu

INSIDE = Path(__file__).parent / "inside"
DISK_BYTES = 64 << 20
QUEUES = 2
AGENT = (
    "PYTHONPATH=/mnt/tree:/mnt/tree/drivers:/mnt/tree/meta:/opt/site PYTHONDONTWRITEBYTECODE=1"
    " python3 -m xenbusd agent --host xen --config /tmp/agent.toml --log-level debug >/tmp/agent.log 2>&1 &"
)


class AgentDomu(Domu):
    """A guest that takes commands and has Python, for our agent."""

    def __init__(self, name: str, disks: list[str]) -> None:
        super().__init__(name, disks)
        Guest.__init__(self, name, "told", disks, python=True)

    def start_agent(self, options: str) -> None:
        """Start the agent with these options of [drivers.vbd]."""
        self.do("load xen-evtchn xen-gntdev xen-gntalloc nbd")
        self.do(f"printf '[drivers.vbd]\\n{options}' >/tmp/agent.toml")
        self.do(f"cd /; {AGENT} agent=$!")

    def stop_agent(self) -> None:
        """End the agent in order, and show what it has logged."""
        print(self.do("kill $agent; wait $agent; echo ended with $?; cat /tmp/agent.log", timeout_s=120))
        assert "ended with 0" in self.console


@pytest.fixture
def blkback() -> Iterator[None]:
    """Linux's own disk backend, loaded in spite of the blacklist; it takes every vbd that there is."""
    run("modprobe", "--ignore-install", "xen-blkback", "max_queues=4")
    run("modprobe", "loop")
    yield
    run("rmmod", "xen-blkback")


def statistic(guest: Guest, name: str) -> int:
    """One of blkback's counters of the first disk."""
    return int(Path(f"/sys/bus/xen-backend/devices/vbd-{guest.domid}-51712/statistics/{name}").read_text())


@pytest.mark.usefixtures("blkback")
def test_all_that_blkback_negotiates(tmp_path: Path) -> None:
    """A file system through two queues of four pages and large requests; what is discarded is given back; and when the
    image grows, so does the mounted disk, which never leaves."""
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    guest = AgentDomu("grows", [f"script={INSIDE / 'block-loop'},vdev=xvda,access=rw,target={image}"])
    try:
        guest.start()
        guest.start_agent(f"queues = {QUEUES}\\nring_page_order = 2\\n")
        guest.do("await nbd0 && load crc32c_generic ext4", timeout_s=120)
        assert f"using {QUEUES} queues" in run("dmesg")
        frontend = f"/local/domain/{guest.domid}/device/vbd/51712"
        assert run("xenstore-read", f"{frontend}/ring-page-order").strip() == "2"
        assert run("xenstore-read", f"{frontend}/multi-queue-num-queues").strip() == str(QUEUES)

        before = statistic(guest, "wr_req"), statistic(guest, "wr_sect")
        guest.do("dd if=/dev/urandom of=/dev/nbd0 bs=1M count=32 conv=fsync", timeout_s=240)
        requests, sectors = statistic(guest, "wr_req") - before[0], statistic(guest, "wr_sect") - before[1]
        print(f"{requests} writes of {sectors / requests:.0f} sectors")
        assert sectors == 32 << 11
        assert sectors / requests > 88, "no request is larger than a plain one can be"
        assert statistic(guest, "f_req") > 0
        assert guest.do("sha256sum /dev/nbd0", timeout_s=120).split()[0] == sum_of(image)

        taken = image.stat().st_blocks
        guest.do("blkdiscard /dev/nbd0", timeout_s=120)
        assert statistic(guest, "ds_req") > 0
        assert image.stat().st_blocks < taken // 8

        guest.do("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /disk && echo before >/disk/before", timeout_s=240)
        with open(image, "r+b") as file:
            file.truncate(2 * DISK_BYTES)
        run("losetup", "-c", run("losetup", "-j", image).split(":")[0])
        guest.do("sync; echo again >/disk/before; sync")  # blkback checks the size when it has something to do
        size = f"[ $(cat /sys/block/nbd0/size) = {2 * DISK_BYTES // 512} ]"
        guest.do(f"for tenth in $(seq 200); do {size} && break; sleep 0.1; done; {size}")
        print(guest.do("dd if=/dev/urandom of=/dev/nbd0 bs=1M seek=100 count=20 conv=fsync", timeout_s=240))
        guest.do("umount /disk && e2fsck -fn /dev/nbd0", timeout_s=240)
        assert guest.do("sha256sum /dev/nbd0", timeout_s=240).split()[0] == sum_of(image)
        assert guest.do("grep -c device.connected /tmp/agent.log").splitlines()[-1] == "1", "it has come anew"
        guest.stop_agent()
    finally:
        print(guest.console)
        guest.destroy()
    guest.wait_gone()
    run("e2fsck", "-fn", image)
    assert_nothing_left()


@pytest.mark.usefixtures("blkback")
def test_sectors_of_4_kib(tmp_path: Path) -> None:
    """A backend with sectors of 4 KiB: the guest's block device has them too, and the file system is whole."""
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    loop = run("losetup", "--find", "--show", "--sector-size", "4096", image).strip()
    guest = AgentDomu("sectors", [f"script={INSIDE / 'block-device'},vdev=xvda,access=rw,target={loop}"])
    try:
        guest.start()
        guest.start_agent("")
        guest.do("await nbd0 && load crc32c_generic ext4", timeout_s=120)
        assert run("xenstore-read", f"/local/domain/0/backend/vbd/{guest.domid}/51712/sector-size").strip() == "4096"
        assert guest.do("cat /sys/block/nbd0/queue/logical_block_size").splitlines()[-1] == "4096"
        guest.do("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /disk", timeout_s=240)
        guest.do("head -c 8388608 /dev/urandom >/disk/file && sync && sha256sum /disk/file", timeout_s=240)
        guest.do("umount /disk && e2fsck -fn /dev/nbd0 && sha256sum /dev/nbd0", timeout_s=240)
        guest.stop_agent()
    finally:
        print(guest.console)
        guest.destroy()
    guest.wait_gone()
    run("losetup", "--detach", loop)
    check_ext4(guest.console, image, tmp_path / "file")
    assert_nothing_left()
