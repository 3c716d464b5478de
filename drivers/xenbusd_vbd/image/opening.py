"""From what `params` names to an engine: the one place where an image is opened.

A raw image is opened by this process, an image of another format by an image server. Either is locked for as long as it
is in use. When a device is adopted, the previous daemon's last I/O, or its image server, may still hold that lock:
opening then waits up to FENCE_S for it.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from typing import Any

from xenbusd.api import BackendDevice, boolean, once_unlocked, text
from xenbusd_vbd.image.buffered import FileEngine
from xenbusd_vbd.image.chain import check_chain
from xenbusd_vbd.image.direct import DirectEngine
from xenbusd_vbd.image.engine import Engine
from xenbusd_vbd.image.formats import Target
from xenbusd_vbd.image.params import NETWORK, QEMU, RAW, Mode, Params, check_mode, nbd_address, parse, parse_mode
from xenbusd_vbd.image.raw import Image
from xenbusd_vbd.image.reconnect import Log, Source
from xenbusd_vbd.image.remote import NbdEngine
from xenbusd_vbd.image.server import ImageServer, RemoteServer
from xenbusd_vbd.options import complete

FENCE_S = 10.0
"""How long the previous daemon's last I/O may take, when its rings are adopted."""
LOCK_RETRY_S = 0.05
"""Between attempts to lock an image that is still in use."""


async def open_engine(dev: BackendDevice) -> Engine:
    """Open what the hotplug script found, or what the toolstack asked for.

    Only the backend's own directory is read: no guest can write there (XSA-175).

    Raises:
        ResourceError: the image is missing, in use, of a format that is not served, or cannot be opened as asked.
    """
    mode = parse_mode(await dev.own.read("mode", text))
    params = parse(await dev.own.read("params", text))
    fence_s = FENCE_S * dev.adopted
    if params.format != RAW:
        return await open_image_server(
            params,
            mode,
            socket_path=dev.run_path("nbd"),
            log=dev.log,
            options=dev.options,
            fence_s=fence_s,
        )
    path = await dev.own.read("physical-device-path", text, default=params.target)
    safe = await dev.own.read("direct-io-safe", boolean, default=False)
    direct = bool(complete(dev.options)["direct"])
    image = await once_unlocked(
        lambda: asyncio.to_thread(Image, path, writable=mode.writable, shared=mode.shared, direct=direct),
        patience_s=fence_s,
        interval_s=LOCK_RETRY_S,
    )
    if image.traits.on_network and not safe:
        image.buffer_all()
    if image.direct_fd < 0 or image.traits.in_memory:
        return FileEngine(image)
    try:
        return DirectEngine(image)
    except OSError as error:
        dev.log.warning("image.buffered", reason=f"no asynchronous I/O: {error}")
        image.buffer_all()
        return FileEngine(image)


async def open_image_server(
    params: Params,
    mode: Mode,
    *,
    socket_path: str,
    log: Log,
    options: Mapping[str, Any],
    fence_s: float = 0.0,
) -> Engine:
    """Start a server for an image, or connect to an NBD server that runs already.

    Args:
        params: of another format than raw.
        mode: as which the server opens it, too.
        socket_path: where a server of ours listens.
        log: the device's.
        options: of [drivers.vbd], checked: `image_cache` and `backing_files` are used.
        fence_s: how long to wait for an image that the previous daemon's server still holds.

    Raises:
        ResourceError: the sentence says what is wrong, and what to do, or is the server's own.
    Blocks: the coroutine, until the server answers; never the event loop.
    """
    check_mode(params, mode)
    if params.format in NETWORK:
        return await _connect(RemoteServer(nbd_address(params)), mode.writable, log)
    settings = complete(options)
    is_device = params.path is not None and await asyncio.to_thread(_is_device, params.path)
    target = Target(*params, *mode, is_device, settings["image_cache"])

    async def lock() -> ImageServer:
        return ImageServer(target, socket_path)

    server = await once_unlocked(lock, patience_s=fence_s, interval_s=LOCK_RETRY_S)
    try:
        if params.format in QEMU:
            await check_chain(target, allowed=settings["backing_files"] is True)
        return await _connect(server, mode.writable, log)
    except BaseException:
        await server.close()
        raise


async def _connect(source: Source, writable: bool, log: Log) -> Engine:
    engine = NbdEngine(source, writable=writable, log=log)
    await engine.start()
    return engine


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
