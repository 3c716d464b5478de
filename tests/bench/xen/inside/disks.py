"""The three disks of the guest, and how long each backend takes to bring up another."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.bench.xen.inside.guest import NAME
from xenbusd.host.real import store_endpoint
from xenbusd.store.client import StoreClient

CHUNK_BYTES = 1 << 20
LETTERS = {"blkback": "a", "qdisk": "b", "xenbusd": "c"}
CLASSES = {"blkback": "vbd", "qdisk": "qdisk", "xenbusd": "vbd"}
"""How each backend's class is called in dom0's half of the store."""
XVDA, STEP = 51712, 16
"""Numbers of xvda, and from one whole disk to the next."""
CONNECTED_S = 60.0

BLOCK_LOOP = Path(__file__).parents[3] / "xen" / "inside" / "block-loop"


def disk_name(backend: str) -> str:
    """The guest's disk behind a backend."""
    return f"xvd{LETTERS[backend]}"


def line(backend: str, vdev: str, image: Path) -> str:
    """The line for xl that has a backend serve an image."""
    how = {
        "blkback": f"script={BLOCK_LOOP}",
        "qdisk": "backendtype=qdisk,format=raw",
        "xenbusd": "script=block-xenbusd",
    }
    return f"{how[backend]},vdev={vdev},access=rw,target={image}"


def make_image(path: Path, size_bytes: int) -> Path:
    """Make an image without holes."""
    chunk = bytes(range(256)) * (CHUNK_BYTES // 256)
    with open(path, "wb") as file:
        for number in range(size_bytes // CHUNK_BYTES):
            file.write(number.to_bytes(8, "little") + chunk[8:])
    return path


async def bring_up(backend: str, image: Path, domid: int, vdev: str) -> tuple[float, float]:
    """Attach a disk and detach it again. Return the seconds from the call of `xl block-attach` until both ends are
    Connected, and until xl had ended.

    Raises:
        TimeoutError
    """
    devid = XVDA + STEP * (ord(vdev[-1]) - ord("a"))
    back = f"/local/domain/0/backend/{CLASSES[backend]}/{domid}/{devid}/state"
    front = f"/local/domain/{domid}/device/vbd/{devid}/state"
    async with StoreClient(store_endpoint()) as store:
        watches = [await store.watch(path) for path in (back, front)]
        began = time.perf_counter()
        xl = await _start("block-attach", line(backend, vdev, image))
        async with asyncio.timeout(CONNECTED_S):
            for path, watch in zip((back, front), watches, strict=True):
                while await _value(store, path) != b"4":
                    await watch.wait()
        connected_s = time.perf_counter() - began
        await _end(xl)
        returned_s = time.perf_counter() - began
        await _end(await _start("block-detach", vdev))
        for watch in watches:
            await watch.unwatch()
    return connected_s, returned_s


async def _value(store: StoreClient, path: str) -> bytes:
    from xenbusd.errors import NodeNotFound

    try:
        return bytes(await store.read(path))
    except NodeNotFound:
        return b""


async def _start(command: str, what: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        "xl", command, NAME, what, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )


async def _end(xl: asyncio.subprocess.Process) -> None:
    said, _ = await asyncio.wait_for(xl.communicate(), CONNECTED_S)
    assert xl.returncode == 0, said.decode(errors="replace")
