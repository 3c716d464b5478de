"""A guest's life under xl: shut down, rebooted, saved and restored, with disks of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xen.disks import empty_image, ours, wait_written
from tests.xen.dom0 import Daemon, assert_nothing_left, run, sum_of, until
from tests.xen.domu import Domu
from tests.xen.xl import xl
from xenbusd.bus.state import State

DISK_BYTES = 32 << 20


@pytest.mark.usefixtures("each_store")
def test_shutdown_and_reboot(serve: Daemon, tmp_path: Path) -> None:
    """`xl reboot` gives the guest another domid, and it finds on its disk what it wrote in its first life; `xl
    shutdown` has it power off in order, blkfront closing first."""
    files = serve.open_files
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    guest = Domu("phoenix", [ours("xvda", image)], on_reboot="restart")
    try:
        guest.start().assert_reached(State.INIT_WAIT)
        first = guest.domid
        guest.do("load xen-blkfront crc32c_generic ext4; await xvda && mkfs.ext4 -q /dev/xvda")
        written = guest.do(
            "mount -t ext4 /dev/xvda /disk && head -c 8388608 /dev/urandom >/disk/file && sha256sum /disk/file"
        )
        xl("reboot", guest.name)
        guest.wait_ready(2)
        assert guest.domid != first
        guest.do("load xen-blkfront crc32c_generic ext4; await xvda")
        assert guest.do("mount -t ext4 /dev/xvda /disk && sha256sum /disk/file") == written
        xl("shutdown", "-w", guest.name)
        guest.wait_gone()
        said = until(lambda: said if "Done. Exiting now" in (said := guest.log()) else None, "end of xl")
        print(said.text)
        said.assert_reached(State.CLOSED, 2)
    finally:
        guest.destroy()
    assert serve.log.count("the frontend closed") == 2
    assert image.stat().st_size == DISK_BYTES
    run("e2fsck", "-fn", image)
    serve.wait_files(files)
    assert_nothing_left()


def test_save_and_restore(serve: Daemon, tmp_path: Path) -> None:
    """`xl save` in the middle of I/O and `xl restore`: the guest goes on writing where it was, and nothing is lost."""
    files = serve.open_files
    image = empty_image(tmp_path / "disk.img", DISK_BYTES)
    guest = Domu("sleeper", [ours("xvda", image)])
    saved = tmp_path / "saved"
    try:
        guest.start().assert_reached(State.INIT_WAIT)
        first = guest.domid
        guest.do("load xen-blkfront; await xvda && busy /dev/xvda 32")
        wait_written(image)
        xl("save", guest.name, saved).assert_reached(State.CLOSED)
        assert_nothing_left()
        xl("restore", saved).assert_reached(State.INIT_WAIT)
        guest.find()
        assert guest.domid != first
        wait_written(image)
        guest.do("idle && echo 3 >/proc/sys/vm/drop_caches")
        assert sum_of(image) in guest.do("sha256sum /dev/xvda")
        assert "error" not in guest.do("dmesg | grep -i 'error.*xvd' || true")
        xl("destroy", guest.name).assert_reached(State.CLOSED)
        guest.wait_gone()
    finally:
        guest.destroy()
        saved.unlink(missing_ok=True)
    serve.wait_files(files)
    assert_nothing_left()
