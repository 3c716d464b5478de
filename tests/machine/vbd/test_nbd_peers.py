"""NBD clients of other projects on the export of a disk in memory."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles.disk_programs import fio_has_nbd, needs
from tests.doubles.memory_disk import MemoryDisk
from xenbusd_vbd.nbd.export import NbdExport

SIZE = 32 << 20
NAME = "vbd-51712"


class Served:
    """An export on a socket, and how to run a program against it."""

    def __init__(self, directory: Path, disk: MemoryDisk) -> None:
        self.disk = disk
        self.breaches: list[object] = []
        self.path = str(directory / "nbd")
        self.export = NbdExport(disk, name=NAME, log=lambda event, **facts: self.breaches.append((event, facts)))

    def uri(self, name: str = "") -> str:
        """The export's NBD URI."""
        return f"nbd+unix:///{name}?socket={self.path}"

    async def run(self, *argv: str, status: int = 0, **environment: str) -> str:
        """Run a program to its end; return what it printed."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
        assert process.returncode == status, f"{argv[0]} exited with {process.returncode}: {output.decode()}"
        return output.decode()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A writable disk; afterwards, no client may have been seen to break the protocol."""
    server = Served(tmp_path, MemoryDisk(SIZE))
    await server.export.listen(server.path)
    yield server
    await server.export.close()
    assert server.breaches == []


@pytest.fixture
async def read_only(tmp_path: Path) -> AsyncIterator[Served]:
    """A read-only disk of another export."""
    server = Served(tmp_path, MemoryDisk(SIZE, read_only=True))
    await server.export.listen(server.path)
    yield server
    await server.export.close()
    assert server.breaches == []


@needs("nbdinfo", "libnbd-bin")
@pytest.mark.parametrize("name", ["", NAME])
async def test_nbdinfo(served: Served, name: str) -> None:
    """nbdinfo finds the export under both names, with size, abilities and block sizes."""
    info = json.loads(await served.run("nbdinfo", "--json", served.uri(name)))
    assert (info["protocol"], info["structured"]) == ("newstyle-fixed", True)
    (export,) = info["exports"]
    expected = {
        "export-size": SIZE,
        "is_read_only": False,
        "can_flush": True,
        "can_fua": True,
        "can_trim": True,
        "can_multi_conn": True,
        "can_df": True,
        "block_size_minimum": 512,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 << 20,
    }
    assert {key: export[key] for key in expected} == expected


@needs("nbdinfo", "libnbd-bin")
async def test_nbdinfo_list_and_unknown(served: Served) -> None:
    """nbdinfo lists the export by name, and says that another name is not there."""
    listed = json.loads(await served.run("nbdinfo", "--json", "--list", served.uri()))
    assert [export["export-name"] for export in listed["exports"]] == [NAME]
    assert "No such file" in await served.run("nbdinfo", served.uri("xvdb"), status=1)


@needs("nbdinfo", "libnbd-bin")
async def test_nbdinfo_read_only(read_only: Served) -> None:
    """nbdinfo sees that a disk is read-only and cannot be trimmed."""
    (export,) = json.loads(await read_only.run("nbdinfo", "--json", read_only.uri()))["exports"]
    assert (export["is_read_only"], export["can_trim"]) == (True, False)


@needs("nbdcopy", "libnbd-bin")
@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_there_and_back(served: Served, tmp_path: Path, connections: int) -> None:
    """nbdcopy writes a whole image and reads it back, over several connections with many requests each."""
    there, back = tmp_path / "there", tmp_path / "back"
    image = os.urandom(SIZE)
    there.write_bytes(image)
    # nbdcopy opens no more connections than it has threads.
    options = (f"--connections={connections}", f"--threads={connections}", "--requests=64", "--flush")
    await served.run("nbdcopy", *options, str(there), served.uri())
    assert served.disk.data == image
    assert ("flush",) in served.disk.seen
    await served.run("nbdcopy", *options, served.uri(), str(back))
    assert back.read_bytes() == image
    assert served.export.counters["nbd_bytes_read"] == served.export.counters["nbd_bytes_written"] == SIZE
    assert served.export.counters["nbd_connections"] >= 2 * connections


@needs("nbdcopy", "libnbd-bin")
async def test_nbdcopy_in_small_requests(served: Served, tmp_path: Path) -> None:
    """nbdcopy in requests of 4 KiB gets every one answered."""
    back = tmp_path / "back"
    served.disk.data[:] = os.urandom(SIZE)
    await served.run("nbdcopy", "--request-size=4096", "--connections=2", served.uri(), str(back))
    assert back.read_bytes() == served.disk.data
    assert served.export.counters["nbd_requests"] == SIZE // 4096


@needs("nbdcopy", "libnbd-bin")
async def test_nbdcopy_to_a_read_only_disk(read_only: Served, tmp_path: Path) -> None:
    """nbdcopy refuses to write to a disk that is announced as read-only, and the disk is as it was."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * SIZE)
    await read_only.run("nbdcopy", str(image), read_only.uri(), status=1)
    assert read_only.disk.data == bytes(SIZE)


@needs("qemu-img", "qemu-utils")
async def test_qemu_img(served: Served, tmp_path: Path) -> None:
    """qemu-img sees the size, copies the disk out, and finds the copy identical."""
    served.disk.data[: 1 << 20] = os.urandom(1 << 20)
    info = json.loads(await served.run("qemu-img", "info", "--output=json", "-f", "raw", served.uri()))
    assert info["virtual-size"] == SIZE
    copy = str(tmp_path / "copy")
    await served.run("qemu-img", "convert", "-f", "raw", "-O", "raw", served.uri(NAME), copy)
    assert "identical" in await served.run("qemu-img", "compare", "-f", "raw", "-F", "raw", served.uri(), copy)


@needs("qemu-io", "qemu-utils")
async def test_qemu_io(served: Served) -> None:
    """qemu-io writes, flushes, forces, discards, and verifies patterns; unaligned ones too, which it makes whole."""
    steps = (
        "write -P 0x5a 1M 64k",
        "flush",
        "read -P 0x5a 1M 64k",
        "write -f -P 3 0 512",
        "write -P 7 1000 300",
        "read -P 7 1000 300",
        "discard 1M 64k",
        "read -P 0 1M 64k",
        "write -z 4k 64k",
        "aio_write -P 9 8M 20M",
        "aio_flush",
        "read -P 9 8M 20M",
    )
    output = await served.run("qemu-io", "-f", "raw", *(word for step in steps for word in ("-c", step)), served.uri())
    assert "failed" not in output
    assert "verification" not in output
    assert ("write", 0, 512, True) in served.disk.seen
    assert ("trim", 1 << 20, 64 << 10) in served.disk.seen
    assert ("flush",) in served.disk.seen
    assert served.disk.data[1000:1300] == b"\7" * 300


NBDSH = """
import errno
h.set_strict_mode(0)
h.connect_uri(uri)
assert h.get_structured_replies_negotiated() is structured
assert h.get_size() == size and h.can_multi_conn() and not h.is_read_only()
def fails(number, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError((call, args))
h.pwrite(b"sh" * 256, 512, nbd.CMD_FLAG_FUA)
assert h.pread(512, 512) == b"sh" * 256
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 512, 100)
fails(errno.ENOSPC, h.pwrite, b"x" * 1024, size - 512)
fails(errno.EINVAL, h.pwrite, b"x" * 100, 0)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.zero, 512, 0)
fails(errno.EINVAL, h.cache, 512, 0)
h.trim(size, 0)
h.flush()
assert h.pread(512, 512) == bytes(512)
cookies = [h.aio_pread(nbd.Buffer(65536), 65536 * n) for n in range(300)]
while cookies:
    h.poll(-1)
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
h.shutdown()
print("all well")
"""


@needs("nbdsh", "python3-libnbd")
@pytest.mark.parametrize("structured", [True, False])
async def test_nbdsh(served: Served, structured: bool) -> None:
    """libnbd's shell, made to skip its own checks, gets NBD's error for each bad request and the connection stays."""
    script = f"uri = {served.uri()!r}\nsize = {SIZE}\nstructured = {structured}\n"
    script += "" if structured else "h.set_request_structured_replies(False)\n"
    # nbdsh runs the python3 that it finds first, and libnbd's module is in the distribution's own.
    output = await served.run("nbdsh", "-c", script + NBDSH, PATH=f"/usr/bin:{os.environ['PATH']}")
    assert output.strip() == "all well"
    assert served.disk.data == bytes(SIZE)


@pytest.mark.skipif(not fio_has_nbd(), reason="no fio with the nbd engine: apt-get install fio")
async def test_fio(served: Served, tmp_path: Path) -> None:
    """fio's nbd engine writes at random at depth 32 and verifies every block by checksum."""
    arguments = ("--name=verify", "--ioengine=nbd", f"--uri={served.uri()}", "--rw=randwrite", "--bs=4k", "--size=8M")
    report = tmp_path / "report"
    output = ("--output-format=json", f"--output={report}", f"--aux-path={tmp_path}")
    await served.run("fio", *arguments, "--iodepth=32", "--verify=crc32c", *output)
    (job,) = json.loads(report.read_text())["jobs"]
    assert (job["error"], job["write"]["io_bytes"], job["read"]["io_bytes"]) == (0, 8 << 20, 8 << 20)
