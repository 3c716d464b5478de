"""Disks for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.served_image import contents


@pytest.fixture(params=["file", "memory file", "loop device"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB to serve: a file on a device, one on tmpfs, and a block device where we may make one."""
    if request.param == "memory file":
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("there is no tmpfs at /dev/shm")
        path = Path(f"/dev/shm/xenbusd-test-{os.getpid()}.img")
    else:
        path = tmp_path / "disk.img"
    path.write_bytes(contents())
    if request.param != "loop device":
        yield path
        path.unlink()
        return
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 1 MiB in a file."""
    path = tmp_path / "disk.img"
    path.write_bytes(contents())
    return path
