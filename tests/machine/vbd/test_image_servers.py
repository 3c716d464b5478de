"""Engines that use the real qemu-nbd and nbdkit, with images made and read by the real qemu-img."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.nbd_bench import Lines, job, until
from xenbusd.api import ResourceError
from xenbusd_vbd.image.engine import Job
from xenbusd_vbd.image.opening import open_image_server
from xenbusd_vbd.image.params import Mode, parse
from xenbusd_vbd.image.remote import NbdEngine
from xenbusd_vbd.image.server import ImageServer
from xenbusd_vbd.protocol import DISCARD, FLUSH_DISKCACHE, OKAY, READ, WRITE, WRITE_BARRIER

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-nbd") is None, reason="no qemu-nbd: apt-get install qemu-utils"),
    pytest.mark.skipif(shutil.which("nbdkit") is None, reason="no nbdkit: apt-get install nbdkit"),
]

SIZE = 16 << 20
QEMU_NAMES = {
    "qcow2": "qcow2",
    "qcow": "qcow",
    "qed": "qed",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "vdi": "vdi",
}


def qemu_img(*arguments: str | Path) -> str:
    """Run it to its end; return what it said."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Disk:
    """An opened image, and how to use it."""

    def __init__(self, engine: NbdEngine, log: Lines) -> None:
        self.engine = engine
        self.log = log
        self._left: set[Job] = set()
        self._told = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the server."""
        assert isinstance(self.engine._connection.source, ImageServer)
        pid = self.engine._connection.source.pid
        assert pid is not None
        return pid

    def finished(self, jobs: list[Job]) -> None:
        """What the engine calls."""
        self._left.difference_update(jobs)
        self._told.set()

    def begin(self, *jobs: Job) -> None:
        """Submit."""
        self._left.update(jobs)
        self._left.difference_update(self.engine.submit(list(jobs), self.finished))

    async def end(self) -> None:
        """Wait until nothing is under way."""
        async with asyncio.timeout(60):
            while self._left:
                self._told.clear()
                await self._told.wait()

    async def run(self, *jobs: Job) -> list[int]:
        """Do jobs to their end."""
        self.begin(*jobs)
        await self.end()
        return [one.status for one in jobs]

    async def write(self, sector: int, data: bytes, op: int = WRITE) -> None:
        """Write, and expect no error."""
        assert await self.run(job(op, sector, data, pieces=max(1, len(data) // 4096))) == [OKAY]

    async def read(self, sector: int, length: int) -> bytes:
        """What is there."""
        one = job(READ, sector, bytes(length), pieces=max(1, length // 4096))
        assert await self.run(one) == [OKAY]
        return b"".join(one.buffers)


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Any]]:
    """Open images, in a folder with a short name; all are closed in the end."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder:
        async with contextlib.AsyncExitStack() as stack:

            async def open_it(
                format: str, path: str | Path, *, writable: bool = True, shared: bool = False, **options: object
            ) -> Disk:
                log = Lines()
                engine = await open_image_server(
                    parse(f"{format}:{path}"),
                    Mode(writable, shared),
                    socket_path=f"{folder}/{random.randrange(1 << 30)}",
                    log=log,
                    options=options,
                )
                assert isinstance(engine, NbdEngine)
                stack.push_async_callback(engine.close)
                return Disk(engine, log)

            yield open_it


@pytest.fixture
def reference() -> bytearray:
    """What an image holds."""
    return bytearray(random.Random(1).randbytes(SIZE))


@pytest.mark.parametrize("format", QEMU_NAMES)
async def test_each_format(opened: Callable[..., Any], tmp_path: Path, format: str, reference: bytearray) -> None:
    """An image that qemu-img has made is read and written, and qemu-img finds in it afterwards what was written."""
    raw, image, back = tmp_path / "raw", tmp_path / "image, with=a comma", tmp_path / "back"
    raw.write_bytes(reference)
    qemu_img("convert", "-f", "raw", "-O", QEMU_NAMES[format], raw, image)
    disk = await opened(format, image)
    assert disk.engine.sectors >= SIZE // 512  # a VHD is rounded up to whole cylinders
    assert await disk.read(0, SIZE) == reference
    for sector, length in ((0, 512), (8, 1 << 20), (12345, 3 * 512), (SIZE // 512 - 8, 4096)):
        data = random.randbytes(length)
        reference[sector * 512 : sector * 512 + length] = data
        await disk.write(sector, data)
    await disk.write(4096, reference[4096 * 512 : 4096 * 512 + 65536], WRITE_BARRIER)
    assert await disk.read(0, SIZE) == reference
    await disk.engine.close()
    qemu_img("convert", "-f", QEMU_NAMES[format], "-O", "raw", image, back)
    assert back.read_bytes()[:SIZE] == reference


async def test_past_the_page_cache(opened: Callable[..., Any], tmp_path: Path) -> None:
    """image_cache = "none"."""
    image = Path.cwd() / "build" / f"direct-{os.getpid()}.qcow2"  # /tmp may be a tmpfs, which has nothing else
    image.parent.mkdir(exist_ok=True)
    try:
        qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
        disk = await opened("qcow2", image, image_cache="none")
        await disk.write(1, b"d" * 1536)
        assert await disk.read(0, 4096) == bytes(512) + b"d" * 1536 + bytes(2048)
        await disk.engine.close()
    finally:
        image.unlink()
    del tmp_path


async def test_a_discard_frees_clusters(opened: Callable[..., Any], tmp_path: Path) -> None:
    """The image becomes smaller, and what is discarded reads as zeros."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    disk = await opened("qcow2", image)
    assert disk.engine.can_discard
    for sector in range(0, SIZE // 512, 2048):
        await disk.write(sector, b"x" * (1 << 20))
    full = image.stat().st_blocks
    assert await disk.run(job(DISCARD, 0, sectors=SIZE // 512)) == [OKAY]
    assert await disk.read(2048, 4096) == bytes(4096)
    await disk.engine.close()
    assert image.stat().st_blocks < full // 4


async def test_killed_in_the_middle_of_writing(
    opened: Callable[..., Any], tmp_path: Path, reference: bytearray
) -> None:
    """SIGKILL, three times, while 64 writes are under way and none was ever flushed: the guest sees no error, and
    everything is there. (Of what qemu-nbd has answered and not flushed, its death loses what is in its tables.)"""
    image, back = tmp_path / "image", tmp_path / "back"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    disk = await opened("qcow2", image)
    order = list(range(0, SIZE // 512, 128))
    random.Random(2).shuffle(order)
    killed = []
    for position in range(0, len(order), 64):
        jobs = [job(WRITE, n, reference[n * 512 : n * 512 + 65536], pieces=16) for n in order[position : position + 64]]
        disk.begin(*jobs)
        if position:
            killed.append(disk.pid)
            os.kill(disk.pid, signal.SIGKILL)
        await disk.end()
        assert [one.status for one in jobs] == [OKAY] * 64
        await until(lambda: disk.log.events.count("image_server.back") == len(killed))
    assert len(killed) == 3
    assert disk.pid not in killed
    assert await disk.read(0, SIZE) == reference
    assert await disk.run(job(FLUSH_DISKCACHE)) == [OKAY]
    await disk.engine.close()
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, back)
    assert back.read_bytes() == reference


async def test_killed_while_nothing_is_under_way(opened: Callable[..., Any], tmp_path: Path) -> None:
    """It comes back by itself, and has what was answered before."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    disk = await opened("qcow2", image)
    await disk.write(0, b"k" * 4096)
    os.kill(disk.pid, signal.SIGKILL)
    await until(lambda: "image_server.back" in disk.log.events)
    assert await disk.read(0, 4096) == b"k" * 4096


async def test_terminated_by_somebody_else(opened: Callable[..., Any], tmp_path: Path) -> None:
    """SIGTERM from an administrator is an outage like any other."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    disk = await opened("qcow2", image)
    os.kill(disk.pid, signal.SIGTERM)
    await until(lambda: "image_server.back" in disk.log.events)
    assert await disk.read(0, 4096) == bytes(4096)


OWNER = """
import asyncio, signal, sys
from tests.doubles.nbd_bench import Lines, job
from xenbusd_vbd.image.opening import open_image_server
from xenbusd_vbd.image.params import Mode, parse
from xenbusd_vbd.protocol import WRITE

async def main():
    image, path = sys.argv[1:]
    engine = await open_image_server(
        parse("qcow2:" + image), Mode(True, False), socket_path=path, log=Lines(), options={}
    )
    done = asyncio.Event()
    if not engine.submit([job(WRITE, 0, b"o" * 65536)], lambda jobs: done.set()):
        await done.wait()
    print(engine._connection.source.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_server_dies_with_its_owner(opened: Callable[..., Any], tmp_path: Path) -> None:
    """SIGKILL to us: qemu-nbd puts in order what it has answered, though nobody has flushed it, and ends; the next
    daemon waits for that by the lock."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    root = Path(__file__).parents[3]
    with tempfile.TemporaryDirectory(prefix="xb") as folder:
        owner = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            OWNER,
            str(image),
            f"{folder}/s",
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{root}:{root / 'drivers'}"},
        )
        assert owner.stdout is not None
        async with asyncio.timeout(60):
            pid = int(await owner.stdout.readline())
            with pytest.raises(ResourceError, match="in use"):
                await opened("qcow2", image)
            pidfd = os.pidfd_open(pid)
            owner.kill()
            await owner.wait()
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(pidfd, gone.set)
            await gone.wait()
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
    disk = await opened("qcow2", image)
    assert await disk.read(0, 65536) == b"o" * 65536
    await disk.engine.close()
    assert "No errors" in qemu_img("check", "-f", "qcow2", image)


async def test_a_raw_image_with_a_header_is_raw_bytes(opened: Callable[..., Any], tmp_path: Path) -> None:
    """XSA-258: a guest that writes a qcow2 header naming /etc/shadow gets its own bytes back, and nothing else."""
    header, raw = tmp_path / "header", tmp_path / "raw"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", header, SIZE)
    data = header.read_bytes()
    raw.write_bytes(data.ljust(SIZE, b"\0"))
    disk = await opened("nbdkit", f"file file={raw}")
    assert await disk.read(0, 65536) == raw.read_bytes()[:65536]
    assert disk.engine.sectors == SIZE // 512
    with pytest.raises(ResourceError, match="leads to another file, /etc/shadow"):
        await opened("qcow2", header)


@pytest.mark.parametrize("format", QEMU_NAMES)
async def test_a_wrong_format_is_not_served(opened: Callable[..., Any], tmp_path: Path, format: str) -> None:
    """A raw file has none of these formats, and the error names the program, the format and the file."""
    raw = tmp_path / "raw"
    raw.write_bytes(b"\1" * SIZE)
    with pytest.raises(ResourceError) as caught:
        await opened(format, raw)
    assert f"qemu-img cannot serve {format}:{raw}" in str(caught.value)


async def test_a_corrupt_image(opened: Callable[..., Any], tmp_path: Path) -> None:
    """qemu-nbd's own words say that it is."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    data = bytearray(image.read_bytes())
    data[40:48] = b"\xff" * 8  # where the L1 table is
    image.write_bytes(data)
    with pytest.raises(ResourceError, match="L1 table"):
        await opened("qcow2", image)


async def test_an_image_in_use_by_qemu(opened: Callable[..., Any], tmp_path: Path) -> None:
    """qemu locks in its own way; its refusal becomes ours, with EBUSY. A disk that only reads may, if it says so."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    user = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "qcow2", str(image), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert user.stdin is not None
    assert user.stdout is not None
    user.stdin.write(b"write 0 4k\n")
    await user.stdout.readline()
    with pytest.raises(ResourceError, match="lock") as caught:
        await opened("qcow2", image)
    assert caught.value.errno == 16
    shared = await opened("qcow2", image, writable=False, shared=True)
    await shared.read(0, 512)
    await user.communicate(b"quit\n")


async def test_a_read_only_disk(opened: Callable[..., Any], tmp_path: Path) -> None:
    """Several may read one image; it is not written to, even if its file is not writable at all."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    before = image.read_bytes()
    first, second = await opened("qcow2", image, writable=False), await opened("qcow2", image, writable=False)
    assert await first.read(0, 512) == await second.read(0, 512) == bytes(512)
    assert not first.engine.can_discard
    assert (await first.run(job(WRITE, 0, b"x" * 512)))[0] != OKAY
    await first.engine.close()
    await second.engine.close()
    assert image.read_bytes() == before


async def test_packed_images(opened: Callable[..., Any], tmp_path: Path, reference: bytearray) -> None:
    """Compressed ones are read as what they hold."""
    reference = reference[: 1 << 20]
    import gzip
    import lzma

    (tmp_path / "a.xz").write_bytes(lzma.compress(reference, preset=0))
    (tmp_path / "a.gz").write_bytes(gzip.compress(reference, 1))
    for format in ("xz", "gz"):
        disk = await opened(format, tmp_path / f"a.{format}", writable=False)
        assert await disk.read(0, 1 << 20) == reference
    with pytest.raises(ResourceError, match="not an xz file"):
        await opened("xz", tmp_path / "a.gz", writable=False)


async def test_an_image_on_the_web_that_is_not_there(opened: Callable[..., Any]) -> None:
    """curl's words are in the error."""
    with pytest.raises(ResourceError, match="Couldn't connect"):
        await opened("http", "//127.0.0.1:1/disk.img", writable=False)


async def test_an_image_that_grows(opened: Callable[..., Any], tmp_path: Path) -> None:
    """nbdkit opens a file anew for each connection: `refresh` finds the new size, and requests are served on."""
    raw = tmp_path / "raw"
    raw.write_bytes(b"g" * SIZE)
    disk = await opened("nbdkit", f"file file={raw}")
    await disk.engine.refresh()
    assert disk.engine.sectors == SIZE // 512
    os.truncate(raw, 2 * SIZE + 100)
    await disk.engine.refresh()
    assert disk.engine.sectors == 2 * SIZE // 512
    await disk.write(SIZE // 512, b"n" * 512)
    assert await disk.read(SIZE // 512 - 1, 1024) == b"g" * 512 + b"n" * 512
