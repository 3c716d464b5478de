"""A target's traits, as the kernel reports them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenbusd.errors import ResourceError
from xenbusd_vbd.image import traits

SIZE = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file of 1 MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A loop device with sectors of this size."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    words = ["losetup", "--find", "--show", "--sector-size", str(request.param), str(path)]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    fd = os.open(made.stdout.strip(), os.O_RDWR)
    yield fd, request.param
    os.close(fd)
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_file(file: int) -> None:
    """It has the blocks of the device below, and discards as its file system does them."""
    found = traits.inspect(file, "it")
    assert not found.is_device
    assert not found.in_memory
    assert not found.on_network
    assert not found.secure_erase
    assert found.logical_block_bytes in (512, 4096)
    assert found.physical_sector_bytes >= found.logical_block_bytes or found.physical_sector_bytes == 512
    assert traits.size_bytes(file, False) == SIZE


def test_a_file_in_memory() -> None:
    """tmpfs is recognised by its magic number."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no tmpfs at /dev/shm")
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        assert traits.inspect(file.fileno(), "it").in_memory


def test_a_device(device: tuple[int, int]) -> None:
    """Sectors, size, and what the queue says of discards; a loop device on a file makes holes, and erases nothing
    securely."""
    fd, sector = device
    found = traits.inspect(fd, "it")
    assert found.is_device
    assert (found.logical_block_bytes, found.physical_sector_bytes) == (sector, sector)
    assert found.discards
    assert found.discard_granularity >= sector
    assert not found.secure_erase
    assert traits.size_bytes(fd, True) == SIZE


def test_what_is_neither(tmp_path: Path) -> None:
    """A folder, a FIFO or a character device is no disk."""
    for path in (tmp_path, Path("/dev/null")):
        fd = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(ResourceError, match="it is neither a regular file nor a block device"):
                traits.inspect(fd, "it")
        finally:
            os.close(fd)
