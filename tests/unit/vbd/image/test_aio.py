"""The kernel's asynchronous I/O: batches submitted, results reaped, and refusals."""

from __future__ import annotations

import errno
import mmap
import os
import select
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from xenbusd_vbd.image.aio import FDSYNC, PREADV, PWRITEV, Aio, Transfer, array_of

BLOCK = 4096


@pytest.fixture
def aio() -> Iterator[Aio]:
    """A queue of eight."""
    with closing(Aio(8)) as aio:
        yield aio


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of 16 blocks, block n full of n, open for direct I/O."""
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.write(b"".join(bytes([n]) * BLOCK for n in range(16)))
        os.fsync(file.fileno())  # what the page cache has not written yet, direct I/O waits for
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        pytest.skip("the file system of the temporary folder has no direct I/O")
    yield fd
    os.close(fd)


def memory(blocks: int) -> memoryview:
    """Memory as direct I/O wants it."""
    return memoryview(mmap.mmap(-1, blocks * BLOCK))


def reap(aio: Aio, count: int) -> dict[int, int]:
    """Wait until so many have ended."""
    ended: dict[int, int] = {}
    while len(ended) < count:
        assert select.select([aio.fd], [], [], 60)[0], f"{len(ended)} of {count} have ended"
        ended |= dict(aio.reap())
    return ended


def again(aio: Aio, transfer: Transfer) -> int:
    """Do one transfer, as often as the kernel says that it would have to wait."""
    for _ in range(1000):
        if transfer.op == PWRITEV:  # with a time of change that is up to date, the next write need not wait to set it
            os.pwritev(transfer.fd, [memory(1)], transfer.offset)
        assert aio.submit([transfer]) == 1
        result = reap(aio, 1)[transfer.key]
        if result != -errno.EAGAIN:
            return result
    pytest.skip("this file system does no direct I/O without waiting")


def test_a_batch_of_reads(aio: Aio, fd: int) -> None:
    """Each gets its own block and returns its own key; parts of memory may be scattered."""
    buffers = memory(8)
    for n in range(4):
        pieces = [buffers[(7 - n) * BLOCK :][:BLOCK], buffers[n * BLOCK :][:BLOCK]]
        assert again(aio, Transfer(PREADV, fd, pieces, 2 * n * BLOCK, 100 + n)) == 2 * BLOCK
    assert [buffers[n * BLOCK] for n in range(8)] == [1, 3, 5, 7, 6, 4, 2, 0]


def test_several_at_once(aio: Aio, fd: int) -> None:
    """A full queue of them, by one call: every key comes back once, with its bytes or the news that it would wait."""
    buffers = [memory(1) for _ in range(8)]
    assert aio.submit([Transfer(PREADV, fd, [buffers[n]], n * BLOCK, n) for n in range(8)]) == 8
    ended = reap(aio, 8)
    assert sorted(ended) == list(range(8))
    assert set(ended.values()) <= {BLOCK, -errno.EAGAIN}
    assert all(buffers[n][0] == n for n in range(8) if ended[n] == BLOCK)


def test_a_write_and_a_flush(aio: Aio, fd: int) -> None:
    """What was written can be read by anybody; a flush has a result of 0."""
    data = memory(1)
    data[:] = b"w" * BLOCK
    assert again(aio, Transfer(PWRITEV, fd, [data], 3 * BLOCK, 1)) == BLOCK
    assert aio.submit([Transfer(FDSYNC, fd, [], 0, 2)]) == 1
    assert reap(aio, 1) == {2: 0}
    back = memory(1)
    assert os.preadv(fd, [back], 3 * BLOCK) == BLOCK
    assert back == data


def test_what_the_kernel_refuses(aio: Aio, fd: int) -> None:
    """A descriptor that is none is refused at once; an offset between blocks, at the latest with its result."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        aio.submit([Transfer(PREADV, 9999, [memory(1)], 0, 1)])
    assert again(aio, Transfer(PREADV, fd, [memory(1)], 100, 2)) == -errno.EINVAL


def test_nothing_has_ended(aio: Aio) -> None:
    """Reaping does not wait."""
    assert aio.reap() == []


def test_closing() -> None:
    """Twice is as good as once, and leaves no descriptor."""
    before = os.listdir("/proc/self/fd")
    aio = Aio(1)
    aio.close()
    aio.close()
    assert os.listdir("/proc/self/fd") == before


def test_neighbours_become_one_piece() -> None:
    """Pages that lie end to end are one iovec; others stay apart, and their order stays."""
    whole = memory(4)
    page = [whole[n * BLOCK : (n + 1) * BLOCK] for n in range(4)]
    together = list(array_of([page[0], page[1], page[3]]))
    assert together[1::2] == [2 * BLOCK, BLOCK]
    assert together[2] - together[0] == 3 * BLOCK
    assert list(array_of([page[1], page[0]]))[1::2] == [BLOCK, BLOCK]
    assert list(array_of([])) == []
