"""Our agent in real PV guests: with our backends in dom0 at the other end, and with Linux's own blkback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.disks import check_ext4, empty_image, ours
from tests.xen.dom0 import Guest, assert_nothing_left, daemon, device, living, run
from xenbusd import toolstack
from xenbusd.host.real import store_endpoint
from xenbusd.store.client import StoreClient

one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])
"""The daemons choose their own loop; the test's makes no difference."""


@one_loop
async def test_agent_in_a_guest(tmp_path: Path) -> None:
    """Our frontends in a real guest, our backends in dom0: an echo, and a disk at /dev/nbd0 with a file system."""
    image = empty_image(tmp_path / "disk.img")
    guest = Guest("agent", "agent", [ours("xvda", image)], python=True)
    with daemon("serve", tmp_path / "serve"), living(guest):
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
    """Linux's own disk backend, loaded in spite of the blacklist; it takes every vbd that there is."""
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
