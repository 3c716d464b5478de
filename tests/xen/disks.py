"""Images, and the configuration lines with which xl makes disks of them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.xen.dom0 import Guest, run, sum_of, until
from tests.xen.xl import xl
from xenbusd.bus.state import State

DISK_BYTES = 128 << 20


def empty_image(path: Path, size_bytes: int = DISK_BYTES) -> Path:
    """A sparse image."""
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return path


def ours(vdev: str, image: Path | str, access: str = "rw", *more: str) -> str:
    """A disk line that has us serve a disk."""
    return ",".join(["script=block-xenbusd", f"vdev={vdev}", f"access={access}", *more, f"target={image}"])


def attach(guest: Guest, disk: str) -> None:
    """Have xl attach a disk, in time."""
    xl("block-attach", guest.name, disk).assert_reached(State.INIT_WAIT)


def detach(guest: Guest, vdev: str, *options: str) -> None:
    """Have xl detach a disk, in time."""
    xl("block-detach", *options, guest.name, vdev).assert_reached(State.CLOSED)


def wait_written(image: Path) -> None:
    """Wait until somebody writes to an image, from now on."""
    before = image.stat().st_mtime_ns
    until(lambda: True if image.stat().st_mtime_ns != before else None, f"write to {image}")


def check_ext4(console: str, image: Path, scratch: Path) -> None:
    """The guest's sums of its file and of its disk are those that dom0 finds in the image; the file system is clean."""
    file, disk = re.findall(r"^([0-9a-f]{64})  (?:/disk/file|/dev/\S+)$", console, re.M)
    assert sum_of(image) == disk
    run("e2fsck", "-fn", image)
    run("debugfs", "-R", f"dump /file {scratch}", image)
    assert sum_of(scratch) == file
