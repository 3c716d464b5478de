"""Opening an image that is not raw: refused before anything is started, or an engine; programs stand in for QEMU's."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.memory_disk import MemoryDisk
from tests.doubles.nbd_bench import HANDSHAKE, Bench, Lines, job
from tests.doubles.programs import SERVER, install, qemu_img
from xenbusd.api import ResourceError
from xenbusd_vbd.image.engine import Engine
from xenbusd_vbd.image.formats import Target
from xenbusd_vbd.image.opening import open_image_server
from xenbusd_vbd.image.params import Mode, parse
from xenbusd_vbd.image.server import take_lock
from xenbusd_vbd.protocol import OKAY, WRITE

GREETING, *ANSWERS = HANDSHAKE


async def open_it(format: str, path: str, folder: Path, *, writable: bool = True, **options: Any) -> Engine:
    """Open as the backend does."""
    fence_s = options.pop("fence_s", 0.0)
    return await open_image_server(
        parse(f"{format}:{path}"),
        Mode(writable, shared=False),
        socket_path=str(folder / "s"),
        log=Lines(),
        options=options,
        fence_s=fence_s,
    )


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An image, and programs that serve it."""
    path = tmp_path / "image"
    path.write_bytes(bytes(512))
    install(tmp_path / "bin", monkeypatch, "qemu-img", qemu_img({str(path): {}}))
    program = SERVER.format(before="", greeting=GREETING, answers=ANSWERS, after="client.recv(1)")
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", program)
    return str(path)


async def test_an_engine(image: str, tmp_path: Path) -> None:
    """With the size that the server says; `close` frees the image."""
    engine = await open_it("qcow2", image, tmp_path)
    assert (engine.sectors, engine.writable) == (2048, True)
    with pytest.raises(ResourceError, match="in use"):
        await open_it("qcow2", image, tmp_path)
    await engine.close()
    engine = await open_it("qcow2", image, tmp_path)
    await engine.close()


@pytest.mark.parametrize(
    ("format", "path", "options", "sentence"),
    [
        ("bochs", "/a", {}, "not served"),
        ("qcow2", "a", {}, "absolute path"),
        ("qcow2", "/a\0b", {}, "NUL"),
        ("qcow2", "/nonexistent/a", {}, "cannot open"),
        ("nbd", "nowhere", {}, "params"),
        ("nbd", "unix:/nonexistent/s", {}, "no NBD server answers"),
    ],
)
async def test_what_is_refused(
    image: str, tmp_path: Path, format: str, path: str, options: dict[str, object], sentence: str
) -> None:
    """A refusal is one sentence, and leaves nothing behind."""
    with pytest.raises(ResourceError, match=sentence):
        await open_it(format, path.replace("IMAGE", image), tmp_path, **options)
    assert not (tmp_path / "s").exists()


async def test_a_refusal_frees_the_image(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether qemu-img or qemu-nbd has refused it."""
    install(tmp_path / "bin", monkeypatch, "qemu-img", qemu_img({}))
    with pytest.raises(ResourceError, match="not in that format"):
        await open_it("qcow2", image, tmp_path)
    install(tmp_path / "bin", monkeypatch, "qemu-img", qemu_img({image: {}}))
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", "import sys; sys.exit('it is corrupt')")
    with pytest.raises(ResourceError, match="corrupt") as caught:
        await open_it("qcow2", image, tmp_path)
    assert caught.value.errno == errno.EUCLEAN
    os.close(take_lock(Target("qcow2", image, True)) or -1)


async def test_an_image_that_leads_elsewhere(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that leads elsewhere is served only if the option is exactly true."""
    info = {"backing-filename": "/etc/shadow", "backing-filename-format": "raw"}
    install(tmp_path / "bin", monkeypatch, "qemu-img", qemu_img({image: info}))
    for said in ({}, {"backing_files": "no"}, {"backing_files": False}):
        with pytest.raises(ResourceError, match="backing_files"):
            await open_it("qcow2", image, tmp_path, **said)
    engine = await open_it("qcow2", image, tmp_path, backing_files=True)
    await engine.close()


async def test_a_successor_waits(tmp_path: Path, image: str) -> None:
    """The previous daemon's image server may still put its tables in order."""
    held = take_lock(Target("qcow2", image, True))
    assert held is not None
    with pytest.raises(ResourceError, match="in use"):
        await open_it("qcow2", image, tmp_path, fence_s=0.1)
    waiting = asyncio.create_task(open_it("qcow2", image, tmp_path, fence_s=60.0))
    await asyncio.sleep(0)
    os.close(held)
    engine = await waiting
    await engine.close()


async def test_somebody_elses_server(tmp_path: Path) -> None:
    """A server that is not ours is neither started nor ended."""
    bench = Bench(tmp_path, MemoryDisk(1 << 20))
    await bench.serve()
    engine = await open_it("nbd", f"unix:{bench.address.path}", tmp_path)
    assert await bench.run(engine, job(WRITE, 0, b"w" * 512)) == [OKAY]  # type: ignore[arg-type]
    await engine.close()
    reader = await open_it("nbd+unix", f"///?socket={bench.address.path}", tmp_path, writable=False)
    await reader.close()
    await bench.close()
