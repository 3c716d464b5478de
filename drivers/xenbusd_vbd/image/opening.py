"""Opens an image that is not raw, or not here, as an engine."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Mapping
from typing import Any

from xenbusd.api import ResourceError
from xenbusd_vbd.image.chain import check_chain
from xenbusd_vbd.image.engine import Engine
from xenbusd_vbd.image.formats import NETWORK, QEMU, Target, check, formats
from xenbusd_vbd.image.remote import Log, NbdEngine, Source
from xenbusd_vbd.image.server import ImageServer, RemoteServer
from xenbusd_vbd.nbd.address import parse_address

__all__ = ["formats", "open_image_server"]

AGAIN_S = 0.05
"""Between attempts to open an image that is still in use."""


async def open_image_server(
    format: str,
    path: str,
    *,
    writable: bool,
    shared: bool,
    socket_path: str,
    log: Log,
    options: Mapping[str, Any],
    fence_s: float = 0.0,
) -> Engine:
    """Start a server for an image, or connect to somebody else's.

    Args:
        format: one of `formats()`; what stands in `params` before the first colon.
        path: what stands behind it.
        writable: False: the server opens the image read-only, too.
        shared: "!" in the mode: read an image that another writes.
        socket_path: where a server of ours listens.
        log: the device's.
        options: of the configuration's [drivers.vbd]: `image_cache` ("writeback" or "none"), `backing_files`.
        fence_s: how long to wait for an image that the server of the process before us still holds.

    Raises:
        ResourceError: the sentence says what is wrong, and what to do, or is the server's own.
    Blocks: the coroutine, until the server answers; never the event loop.
    """
    cache = options.get("image_cache", "writeback")
    target = Target(format, path, writable, shared, await asyncio.to_thread(_is_device, path), cache)
    check(target)
    if format in NETWORK:
        return await _start(RemoteServer(parse_address(format, path)), writable, log)
    server = await _lock(target, socket_path, fence_s)
    try:
        if format in QEMU:
            await check_chain(target, allowed=options.get("backing_files", False) is True)
        return await _start(server, writable, log)
    except BaseException:
        await server.close()
        raise


async def _start(source: Source, writable: bool, log: Log) -> Engine:
    engine = NbdEngine(source, writable=writable, log=log)
    await engine.start()
    return engine


async def _lock(target: Target, socket_path: str, fence_s: float) -> ImageServer:
    deadline = time.monotonic() + fence_s
    while True:
        try:
            return ImageServer(target, socket_path)
        except ResourceError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(AGAIN_S)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
