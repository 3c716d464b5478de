"""Real PV guests, made by xl, with Linux's own blkfront at the other end of our backend, or our agent in the guest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.xen.dom0 import Daemon, Guest, assert_nothing_left, daemon, device, run, sum_of, until
from xenbusd import toolstack
from xenbusd.host.real import store_endpoint
from xenbusd.store.client import StoreClient

one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])
"""The daemons choose their own loop; the test's makes no difference."""

DISK_BYTES = 128 << 20
STATE_OK = "wanted state {} ok"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Daemon]:
    """The backends."""
    with daemon("serve", tmp_path / "serve") as process:
        yield process


def empty_image(path: Path, size_bytes: int = DISK_BYTES) -> Path:
    """A sparse image."""
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return path


def ours(vdev: str, image: Path, access: str = "rw") -> str:
    """A disk line that has us serve a disk."""
    return f"script=block-xenbusd,vdev={vdev},access={access},target={image}"


@contextmanager
def living(guest: Guest) -> Iterator[str]:
    """A guest for a while; what is yielded is what xl said when it made it."""
    try:
        yield guest.create()
    finally:
        print(guest.console)
        guest.destroy()


def check_ext4(console: str, image: Path, scratch: Path) -> None:
    """The guest's sums of its file and of its disk are those that dom0 finds in the image; the file system is clean."""
    file, disk = re.findall(r"^([0-9a-f]{64})  (?:/disk/file|/dev/\S+)$", console, re.M)
    assert sum_of(image) == disk
    run("e2fsck", "-fn", image)
    run("debugfs", "-R", f"dump /file {scratch}", image)
    assert sum_of(scratch) == file


def test_ext4_on_blkfront(serve: Daemon, tmp_path: Path) -> None:
    """`xl create`, then Linux's blkfront makes, fills, syncs and checks a file system on our disk; sums are equal in
    guest and dom0, and nothing is left of either end."""
    image = empty_image(tmp_path / "disk.img")
    files = serve.open_files
    guest = Guest("ext4", "ext4", [ours("xvda", image)])
    with living(guest) as said:
        assert STATE_OK.format(2) in said
        guest.wait_for(r"^job ext4 ended with 0$", 240)
        guest.wait_gone()
    check_ext4(guest.console, image, tmp_path / "file")
    until(lambda: True if serve.open_files == files else None, f"return to the files before: {files}", 10)
    assert_nothing_left()


def test_disk_comes_and_goes_under_load(serve: Daemon, tmp_path: Path) -> None:
    """`xl block-attach` and `block-detach` of a second disk, then `xl destroy` while the first is being written."""
    files = serve.open_files
    guest = Guest("follow", "follow", [ours("xvda", empty_image(tmp_path / "a.img"))])
    with living(guest):
        guest.wait_for(r"^disks: xvda \.$")
        attached = run("xl", "-vvv", "block-attach", guest.name, ours("xvdb", empty_image(tmp_path / "b.img")))
        assert STATE_OK.format(2) in attached
        guest.wait_for(r"^disks: xvda xvdb \.$")
        detached = run("xl", "-vvv", "block-detach", guest.name, "xvdb")
        assert STATE_OK.format(6) in detached
        guest.wait_for(r"^disks: xvda xvdb \.$\n^disks: xvda \.$")
        destroyed = run("xl", "-vvv", "destroy", guest.name)
        assert STATE_OK.format(6) in destroyed
        guest.wait_gone()
    until(lambda: True if serve.open_files == files else None, f"return to the files before: {files}", 10)
    assert_nothing_left()


@pytest.mark.usefixtures("serve")
def test_missing_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    """`xl create` with an image that is not there fails, says why, and leaves nothing."""
    guest = Guest("missing", "ext4", [ours("xvda", tmp_path / "nowhere.img")])
    said = guest.create(fails=True)
    assert "nowhere.img does not exist" in said
    assert_nothing_left()


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


@one_loop
@pytest.mark.usefixtures("serve")
async def test_agent_in_a_guest(tmp_path: Path) -> None:
    """Our frontends in a real guest, our backends in dom0: an echo, and a disk at /dev/nbd0 with a file system."""
    image = empty_image(tmp_path / "disk.img")
    guest = Guest("agent", "agent", [ours("xvda", image)], python=True)
    with living(guest):
        async with StoreClient(store_endpoint()) as store:
            echo = device("echo", 0, guest.domid)
            await toolstack.attach(store, echo, {}, {})
            guest.wait_for(r"^echo: HELLO FROM A GUEST$", 180)
            guest.wait_for(r"^agent ended with 0$", 240)
            await toolstack.detach(store, echo, deadline_s=60)
        guest.wait_for(r"^job agent ended with 0$")
        guest.wait_gone()
    check_ext4(guest.console, image, tmp_path / "file")
    assert_nothing_left()


@pytest.fixture
def blkback() -> Iterator[None]:
    """Linux's own disk backend, in spite of what keeps it away; it takes every vbd that there is."""
    run("modprobe", "--ignore-install", "xen-blkback")
    run("modprobe", "loop")
    yield
    run("rmmod", "xen-blkback")


@one_loop
@pytest.mark.usefixtures("blkback")
async def test_agent_on_linux_blkback(tmp_path: Path) -> None:
    """Our frontend in a guest with Linux's own blkback at the other end: the same file system, the same sums."""
    image = empty_image(tmp_path / "disk.img")
    script = Path(__file__).parent / "inside" / "block-loop"
    disk = f"script={script},vdev=xvda,access=rw,target={image}"
    guest = Guest("blkback", "agent", [disk], python=True)
    with daemon("serve", tmp_path / "serve", "--class", "echo"), living(guest):
        async with StoreClient(store_endpoint()) as store:
            echo = device("echo", 0, guest.domid)
            await toolstack.attach(store, echo, {}, {})
            guest.wait_for(r"^agent ended with 0$", 300)
            await toolstack.detach(store, echo, deadline_s=60)
        guest.wait_for(r"^job agent ended with 0$")
        guest.wait_gone()
    check_ext4(guest.console, image, tmp_path / "file")
    assert_nothing_left()
