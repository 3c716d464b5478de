"""The daemon is stopped, killed or absent while guests run and while they are destroyed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.xen.disks import empty_image, ours
from tests.xen.dom0 import Guest, assert_nothing_left, daemon, living, run, sum_of
from tests.xen.domu import Domu
from tests.xen.xl import xl
from xenbusd.bus.state import State


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_daemon_restarts_under_a_writing_guest(tmp_path: Path, end: str) -> None:
    """The daemon is stopped, or killed, while a guest writes; the next one takes the ring over, and the guest does not
    notice."""
    image = empty_image(tmp_path / "disk.img")
    guest = Guest(f"steady-{end}", "steady", [ours("xvda", image)])
    with daemon("serve", tmp_path / "run") as first, living(guest):
        guest.wait_for(r"^round 5$")
        (first.stop if end == "stopped" else first.kill)()
        stopped_at = guest.console
        with daemon("serve", tmp_path / "run") as second:
            guest.wait_for(r"^job steady ended with 0$", 180)
            guest.wait_gone()
        assert "device.adopted" in second.log
    assert "round 39" not in stopped_at
    assert not re.search("failed|otherwise|error", guest.console), guest.console
    assert sum_of(image) in guest.console
    assert_nothing_left()


def test_toolstack_works_while_the_daemon_is_down(tmp_path: Path) -> None:
    """With the daemon stopped, `xl block-detach` fails after 10 s, and `xl destroy` succeeds after as long. A daemon
    that is started later closes what was to be closed, and leaves nothing of what has gone."""
    images = [empty_image(tmp_path / f"{number}.img", 16 << 20) for number in range(2)]
    guest = Domu("orphan", [ours("xvda", images[0]), ours("xvdb", images[1])])
    run_dir = tmp_path / "run"
    try:
        with daemon("serve", run_dir):
            guest.start().assert_reached(State.INIT_WAIT, 2)
            guest.do("load xen-blkfront; await xvda && await xvdb")
            guest.do("dd if=/dev/urandom of=/dev/xvda bs=1M count=4 conv=fsync")
        assert "wanted state 6 ok" not in xl("block-detach", guest.name, "xvdb", fails=True)
        with daemon("serve", run_dir) as second:
            read = guest.do("echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/xvda")
            assert sum_of(images[0]) in read
            xl("block-detach", guest.name, "xvdb").assert_reached(State.CLOSED)
            guest.do("await_gone xvdb")
            assert "device.adopted" in second.log
        assert "wanted state 6 ok" not in xl("destroy", guest.name)
        guest.wait_gone()
        with daemon("serve", run_dir) as third:
            assert "vbd" not in run("ls", run_dir)
            assert "[error" not in third.log
    finally:
        guest.destroy()
    assert_nothing_left()
