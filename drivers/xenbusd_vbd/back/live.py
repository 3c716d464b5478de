"""What may change of a disk while a guest uses it: its size, its limits, and whether it runs at all.

The toolstack writes keys into the backend's directory (`LIVE`), and each change takes effect at once. They stay there,
so that the next process of ours finds them.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence

from xenbusd.api import (
    BackendDevice,
    BackLink,
    BusyPoll,
    NodeValueError,
    Raw,
    ResourceError,
    State,
    boolean,
    unsigned,
)
from xenbusd_vbd.back.limits import Limits
from xenbusd_vbd.back.server import BlockServer
from xenbusd_vbd.image.engine import Engine

LIVE = {
    "iops": "requests a second; 0 for no limit",
    "bandwidth": "bytes a second, such as 50M; 0 for no limit",
    "pause": "1 to answer no more requests and let go of the image, 0 to go on",
}
"""Keys of the backend's directory that take effect while it is Connected."""

LOOK_S = 2.0
"""How often an image is asked for its size."""

QUIET_S = 0.3
"""A guest whose disk was detached by force has no more to say, if it has said nothing for so long."""

FORCED_S = 5.0
"""How long such a guest is served at most."""

_RATE = unsigned(1 << 62, "rate")


class LiveDisk:
    """A connected disk.

    Args:
        dev: whose disk.
        open_engine: opens its image, as `params` says by then.
    """

    def __init__(self, dev: BackendDevice, open_engine: Callable[[], Awaitable[Engine]]) -> None:
        self._dev = dev
        self._open_engine = open_engine
        self.limits = Limits()
        self._engine: Engine | None = None
        self._servers: Sequence[BlockServer] = ()
        self._sectors = 0
        """As published."""
        self._turn = asyncio.Lock()
        """Held while the engine changes, or is asked."""
        self._told = ""

    async def open(self) -> Engine | None:
        """Open the image for the first time; None if the process before us left the disk paused.

        Raises:
            ResourceError
        """
        own = self._dev.own
        if self._dev.adopted and await own.read("paused", boolean, default=False):
            self._sectors = await own.read("sectors", unsigned(1 << 54))
            return None
        self._engine = await self._open_engine()
        self._sectors = self._engine.sectors
        return self._engine

    async def serve(self, links: Sequence[BackLink[Raw, Raw]], servers: Sequence[BlockServer]) -> None:
        """Serve all queues for as long as the connection lasts, and finish what is under way then."""
        self._servers = servers
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._follow_keys()), group.create_task(self._follow_size())]
                for link, server in zip(links, servers, strict=True):
                    link.start(server.drain, poll=BusyPoll())
                try:
                    await self._dev.until_ended()
                    await self._outlast_frontend()
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            for server in servers:
                await server.finish(stopping=self._dev.stopping)

    async def _outlast_frontend(self) -> None:
        """Serve on for a moment, if the frontend's directory is gone and ours is not: `xl block-detach --force`.

        The guest is not asked then, and Linux's blkfront first writes what its page cache holds. Unanswered, that waits
        for ever, and with it whoever used the disk; xl waits for us 10 s (LIBXL_DESTROY_TIMEOUT).
        """
        loop, counters = asyncio.get_running_loop(), self._dev.counters
        deadline = loop.time() + FORCED_S
        before = -1
        while (
            self._dev.seen.otherend is State.UNKNOWN
            and (await self._dev.observe()).own is not State.UNKNOWN
            and counters["requests"] != before
            and not self._dev.stopping
            and loop.time() < deadline
        ):
            before = counters["requests"]
            await asyncio.sleep(QUIET_S)

    async def close(self) -> None:
        """Let go of the image. Idempotent."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    # -- what changes ----------------------------------------------------------------------------------------------

    async def _follow_keys(self) -> None:
        """Heed the keys, now and after each change."""
        rates = (0, 0)
        async for _ in self._dev.changes():
            try:
                wanted = (await self._rate("iops"), await self._rate("bandwidth"))
                pause = await self._dev.own.read("pause", boolean, default=False)
            except NodeValueError as error:
                self._tell(f"{error}; it stays as it was")
                continue
            if wanted != rates:
                rates = wanted
                self.limits.set(*rates, asyncio.get_running_loop().time())
                for server in self._servers:
                    server.limits_changed()
                self._dev.log.info("disk.limited", iops=rates[0], bandwidth=rates[1])
            async with self._turn:
                if pause and self._engine is not None:
                    await self._pause()
                elif not pause and self._engine is None:
                    await self._resume()

    async def _rate(self, key: str) -> int:
        return await self._dev.own.read(key, _RATE, default=0)

    async def _pause(self) -> None:
        """Answer what is under way, hold the rest, and let go of the image: somebody else may have it meanwhile."""
        for server in self._servers:
            await server.pause()
        await self.close()
        await self._dev.republish({"paused": 1})
        self._dev.log.info("disk.paused")

    async def _resume(self) -> None:
        """Take the image back, unless it has become smaller, or is not there to be had: then the pause goes on."""
        try:
            engine = await self._open_engine()
            if engine.sectors < self._sectors:
                await engine.close()
                small = f"its image has {engine.sectors} sectors now, and the guest knows {self._sectors}"
                raise ResourceError(small, errno.EFBIG)
        except ResourceError as error:
            self._tell(f"the disk stays paused: {error}")
            await self._dev.report(error)
            return
        self._engine = engine
        for server in self._servers:
            server.resume(engine)
        await self._dev.clear_error()
        await self._dev.republish({"paused": 0})
        self._told = ""
        self._dev.log.info("disk.resumed")
        await self._grow(engine)

    async def _follow_size(self) -> None:
        """Look at the size now and then: nothing tells of a file or device that grows."""
        while True:
            await asyncio.sleep(LOOK_S)
            async with self._turn:
                if self._engine is None:
                    continue
                try:
                    await self._engine.refresh()
                except ResourceError as error:
                    self._tell(str(error))
                    continue
                await self._grow(self._engine)

    async def _grow(self, engine: Engine) -> None:
        """Tell the frontend of a larger disk: `sectors`, then `state` once more (T34)."""
        if engine.sectors > self._sectors:
            self._sectors = engine.sectors
            await self._dev.republish({"sectors": engine.sectors})
            self._dev.log.info("disk.grown", sectors=engine.sectors)
        elif engine.sectors < self._sectors:
            self._tell(f"the image has become smaller: {engine.sectors} sectors, and the guest knows {self._sectors}")

    def _tell(self, problem: str) -> None:
        """Log a problem once, however often it is met."""
        if problem != self._told:
            self._told = problem
            self._dev.log.warning("disk.failed", reason=problem)
