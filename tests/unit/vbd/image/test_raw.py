"""A raw image: opened as asked, locked, read, written, and given holes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from xenbusd.errors import ResourceError
from xenbusd_vbd.image.raw import Image

SIZE = 1 << 20
CONTENTS = bytes(range(1, 256)) * (SIZE // 255 + 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 1 MiB, without a zero in it."""
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENTS[:SIZE])
    return path


@pytest.fixture
def image(path: Path) -> Iterator[Image]:
    """The same, open for writing."""
    with closing(Image(str(path), writable=True)) as image:
        yield image


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """The same on tmpfs."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no tmpfs at /dev/shm")
    with tempfile.TemporaryDirectory(prefix="xenbusd-", dir="/dev/shm") as directory:
        path = Path(directory) / "disk.img"
        path.write_bytes(CONTENTS[:SIZE])
        yield path


def read(image: Image, offset: int, *lengths: int, nowait: bool = False) -> bytes | None:
    """Read into buffers of these lengths; None if it takes a device."""
    buffers = [memoryview(bytearray(length)) for length in lengths]
    return b"".join(buffers) if image.read(buffers, offset, sum(lengths), nowait) else None


def test_what_it_is(image: Image) -> None:
    """A regular file: its size in bytes and sectors, and the physical sector of the device below."""
    assert (image.size_bytes, image.sectors) == (SIZE, 2048)
    assert not image.traits.is_device
    assert image.traits.physical_sector_bytes in (512, 4096)
    assert image.writable


def test_half_a_sector_is_not_served(path: Path) -> None:
    """A size that is no multiple of 512 is rounded down to whole sectors."""
    os.truncate(path, 1023)
    with closing(Image(str(path), writable=True)) as image:
        assert image.sectors == 1


def test_reads_fill_their_buffers_in_order(image: Image) -> None:
    """Several buffers get consecutive bytes."""
    assert read(image, 512, 4096, 512, 1024) == CONTENTS[512 : 512 + 5632]


def test_a_cached_read_needs_no_device(image: Image) -> None:
    """What was written a moment ago can be read with `nowait`; never is it anything but what is there."""
    image.write([memoryview(b"\xa5" * 4096)], 8192, 4096)
    assert read(image, 8192, 4096) == b"\xa5" * 4096
    assert read(image, 8192, 4096, nowait=True) in (b"\xa5" * 4096, None)


def test_writes_change_what_they_name(image: Image, path: Path) -> None:
    """Several buffers become consecutive bytes, and nothing else changes."""
    image.write([memoryview(b"a" * 512), memoryview(b"b" * 4096)], 1024, 4608)
    expected = CONTENTS[:1024] + b"a" * 512 + b"b" * 4096 + CONTENTS[1024 + 4608 : SIZE]
    assert path.read_bytes() == expected


@pytest.mark.parametrize("at_most", [1, 511, 512, 513, 1000])
def test_a_short_transfer_is_continued(image: Image, path: Path, monkeypatch: pytest.MonkeyPatch, at_most: int) -> None:
    """The kernel may move fewer bytes than asked, in the middle of a buffer: the rest follows, in its place."""

    def short(call: Callable[..., int]) -> Callable[..., int]:
        def some(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
            return call(fd, [buffers[0][:at_most]], offset, flags)

        return some

    monkeypatch.setattr("os.preadv", short(os.preadv))
    monkeypatch.setattr("os.pwritev", short(os.pwritev))
    assert read(image, 512, 512, 1024, 512) == CONTENTS[512:2560]
    image.write([memoryview(b"x" * 512), memoryview(b"y" * 1024)], 0, 1536)
    monkeypatch.undo()
    assert path.read_bytes() == b"x" * 512 + b"y" * 1024 + CONTENTS[1536:SIZE]


def test_a_file_that_was_cut_off(image: Image, path: Path) -> None:
    """A read behind the new end fails and says where the file ends; one before it does not."""
    os.truncate(path, 4096 + 512)
    assert read(image, 4096, 512) == CONTENTS[4096:4608]
    with pytest.raises(OSError, match="ends at 4608") as caught:
        read(image, 4096, 1024)
    assert caught.value.errno == errno.EIO


def test_a_cut_off_file_is_no_cached_read(image: Image, path: Path) -> None:
    """With `nowait` a short read is left to a read that may wait and that reports the reason."""
    os.truncate(path, 4096)
    assert read(image, 4096, 512, nowait=True) is None


def test_flush(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush makes the data of this very file stable."""
    flushed: list[int] = []
    monkeypatch.setattr("os.fdatasync", flushed.append)
    image.flush()
    assert flushed == [image.fd]


# -- discards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["path", "memory_path"])
def test_a_discard_makes_a_hole(where: str, request: pytest.FixtureRequest) -> None:
    """The range reads as zeros and takes no room any more; the size and all other bytes stay."""
    path: Path = request.getfixturevalue(where)
    with closing(Image(str(path), writable=True)) as image:
        if not image.can_discard:
            pytest.skip(f"the filesystem of {path.parent} has no holes")
        image.flush()
        blocks = path.stat().st_blocks
        image.discard(SIZE // 4, SIZE // 2)
        image.flush()
        assert path.stat().st_blocks <= blocks - SIZE // 2 // 512
    assert path.read_bytes() == CONTENTS[: SIZE // 4] + bytes(SIZE // 2) + CONTENTS[SIZE // 4 * 3 : SIZE]


def test_a_discard_of_single_sectors(memory_path: Path) -> None:
    """Parts of pages read as zeros, too."""
    with closing(Image(str(memory_path), writable=True)) as image:
        assert image.can_discard
        image.discard(512, 1024)
    assert memory_path.read_bytes() == CONTENTS[:512] + bytes(1024) + CONTENTS[1536:SIZE]


@pytest.mark.parametrize(
    ("offset", "length", "forgotten"),
    [
        (0, 4096, (0, 4096)),
        (512, 16384, (4096, 12288)),  # whole blocks only
        (0, 1024, None),
        (3584, 1024, None),  # across a border, and no block whole
    ],
)
def test_a_discard_on_a_device_of_large_blocks(
    image: Image, monkeypatch: pytest.MonkeyPatch, offset: int, length: int, forgotten: tuple[int, int] | None
) -> None:
    """A device of 4096-byte blocks is asked for whole ones only, as it refuses others; a secure discard goes as it is,
    to be refused rather than half done."""
    asked = []

    def ioctl(_: int, request: int, range: bytes) -> None:
        asked.append((request, int.from_bytes(range[:8], "little"), int.from_bytes(range[8:], "little")))

    image.traits = replace(image.traits, is_device=True, logical_block_bytes=4096)
    monkeypatch.setattr("fcntl.ioctl", ioctl)
    image.discard(offset, length)
    image.discard(offset, length, secure=True)
    assert asked == [*([(0x1277, *forgotten)] if forgotten else []), (0x127D, offset, length)]


def test_a_discard_of_nothing(image: Image, path: Path) -> None:
    """A length of 0, which the kernel would refuse, changes nothing."""
    image.discard(512, 0)
    assert path.read_bytes() == CONTENTS[:SIZE]


def test_asking_for_discards_harms_nothing(image: Image, path: Path) -> None:
    """The check whether holes can be made neither changes nor lengthens the file."""
    del image
    assert path.read_bytes() == CONTENTS[:SIZE]


def test_a_discard_that_fails(path: Path) -> None:
    """The kernel's refusal is an OSError with its errno: here, the file is open for reading only."""
    with closing(Image(str(path), writable=False)) as image, pytest.raises(OSError, match="Bad file descriptor"):
        image.discard(0, 4096)


# -- how it is opened --------------------------------------------------------------------------------------------------


def test_in_memory(memory_path: Path) -> None:
    """A file on tmpfs is known never to wait for a device."""
    with closing(Image(str(memory_path), writable=True)) as image:
        assert image.traits.in_memory


def test_read_only(path: Path) -> None:
    """Without `writable` the kernel itself refuses to write (XSA-142), and discards are not offered."""
    with closing(Image(str(path), writable=False)) as image:
        assert not image.can_discard
        assert read(image, 0, 512) == CONTENTS[:512]
        with pytest.raises(OSError, match="Bad file descriptor"):
            image.write([memoryview(bytes(512))], 0, 512)


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_a_second_user_is_kept_out(path: Path, first: bool, second: bool) -> None:
    """A writer is alone; the message shows the way out."""
    with (
        closing(Image(str(path), writable=first)),
        pytest.raises(ResourceError, match=r"in use by another.*w!") as caught,
    ):
        Image(str(path), writable=second)
    assert caught.value.errno == errno.EBUSY


def test_readers_share(path: Path) -> None:
    """Any number may read."""
    with closing(Image(str(path), writable=False)), closing(Image(str(path), writable=False)) as second:
        assert read(second, 0, 512) == CONTENTS[:512]


@pytest.mark.usefixtures("image")
def test_shared_takes_no_lock(path: Path) -> None:
    """`w!` opens what is in use, and keeps nobody out itself."""
    with closing(Image(str(path), writable=True, shared=True)) as second:
        assert second.writable


def test_closing_gives_the_lock_back(path: Path) -> None:
    """The next user finds the image free; closing twice is nothing."""
    image = Image(str(path), writable=True)
    image.close()
    image.close()
    Image(str(path), writable=True).close()


def test_a_lock_that_was_refused_leaves_nothing_open(image: Image, path: Path) -> None:
    """A user that was kept out holds no descriptor of the file."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ResourceError):
        Image(str(path), writable=True)
    assert os.listdir("/proc/self/fd") == before
    assert image.fd >= 0


@pytest.mark.parametrize("writable", [True, False])
def test_missing(tmp_path: Path, writable: bool) -> None:
    """A missing file is named, with the system's word for it, and is not created."""
    with pytest.raises(ResourceError, match=r"cannot open .*/none.img: No such file") as caught:
        Image(str(tmp_path / "none.img"), writable=writable)
    assert caught.value.errno == errno.ENOENT
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("writable", "code"), [(True, errno.EISDIR), (False, errno.EINVAL)])
def test_a_directory(tmp_path: Path, writable: bool, code: int) -> None:
    """A directory is no image, to write or to read."""
    with pytest.raises(ResourceError, match=r"directory|neither a regular file") as caught:
        Image(str(tmp_path), writable=writable)
    assert caught.value.errno == code


@pytest.mark.parametrize("writable", [True, False])
def test_a_fifo(tmp_path: Path, writable: bool) -> None:
    """A FIFO is refused at once, without waiting for a writer."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ResourceError, match="neither a regular file nor a block device"):
        Image(str(tmp_path / "fifo"), writable=writable)


def test_a_character_device() -> None:
    """/dev/null is no disk."""
    with pytest.raises(ResourceError, match="neither a regular file nor a block device"):
        Image("/dev/null", writable=True)
