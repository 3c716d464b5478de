"""A disk in use: its size, its limits and its pause may change while a guest uses it.

The toolstack writes keys into the backend's directory (`toolstack.LIVE`), and each change takes effect at once. The
keys stay there, so that the next daemon finds them.

Decisions: D15, D41.
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

SIZE_POLL_S = 2.0
"""Seconds between two inspections of the image's size."""

QUIET_S = 0.3
"""Seconds without a request after which a guest, once detached by force, is taken to have no more of them."""

FORCED_S = 5.0
"""Most seconds for which a guest is served after a forced detach."""

_RATE = unsigned(1 << 62, "rate")


class LiveDisk:
    """A connected disk.

    Args:
        dev: whose disk.
        open_engine: opens the image that `params` names at that moment.
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
        """Held while the engine is replaced, or its size is inspected."""
        self._logged = ""
        """The problem that was logged last."""

    @property
    def is_without_server(self) -> bool:
        """Whether the disk's image server has gone, and another is awaited."""
        return self._engine is not None and self._engine.is_without_server

    async def open(self) -> Engine | None:
        """Open the image for the first time. Return None if the previous daemon left the disk paused.

        Raises:
            ResourceError: the image cannot be opened as asked.
        """
        own = self._dev.own
        if self._dev.adopted and await own.read("paused", boolean, default=False):
            self._sectors = await own.read("sectors", unsigned(1 << 54))
            return None
        self._engine = await self._open_engine()
        self._sectors = self._engine.sectors
        return self._engine

    async def serve(self, links: Sequence[BackLink[Raw, Raw]], servers: Sequence[BlockServer]) -> None:
        """Serve all queues for as long as the connection lasts, then finish the requests that were taken."""
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
        """Serve for a while longer if the frontend's directory is gone and ours is not: `xl block-detach --force`.

        The guest is not asked then. Linux's blkfront writes out what its page cache holds, and if those writes are not
        answered, the programs that used the disk wait for ever. xl waits 10 s for the backend (LIBXL_DESTROY_TIMEOUT).
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
        """Close the image. Idempotent."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    # -- changes ---------------------------------------------------------------------------------------------------

    async def _follow_keys(self) -> None:
        """Apply the keys' values, now and after each change."""
        rates = (0, 0)
        async for _ in self._dev.changes():
            try:
                wanted = (await self._rate("iops"), await self._rate("bandwidth"))
                pause = await self._dev.own.read("pause", boolean, default=False)
            except NodeValueError as error:
                self._log_once(f"{error}; the disk stays as it was")
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
        """Answer the requests under way, hold the others, and close the image, so that other programs may use it."""
        for server in self._servers:
            await server.pause()
        await self.close()
        await self._dev.republish({"paused": 1})
        self._dev.log.info("disk.paused")

    async def _resume(self) -> None:
        """Open the image again. If it cannot be opened, or has become smaller, the disk stays paused."""
        try:
            engine = await self._open_engine()
            if engine.sectors < self._sectors:
                await engine.close()
                raise ResourceError(
                    f"its image has {engine.sectors} sectors now, and the guest knows {self._sectors}", errno.EFBIG
                )
        except ResourceError as error:
            self._log_once(f"the disk stays paused: {error}")
            await self._dev.report(error)
            return
        self._engine = engine
        for server in self._servers:
            server.resume(engine)
        await self._dev.clear_error()
        await self._dev.republish({"paused": 0})
        self._logged = ""
        self._dev.log.info("disk.resumed")
        await self._grow(engine)

    async def _follow_size(self) -> None:
        """Inspect the size every SIZE_POLL_S: the kernel notifies nobody of a file or device that grows."""
        while True:
            await asyncio.sleep(SIZE_POLL_S)
            async with self._turn:
                if self._engine is None:
                    continue
                try:
                    await self._engine.refresh()
                except ResourceError as error:
                    self._log_once(str(error))
                    continue
                await self._grow(self._engine)

    async def _grow(self, engine: Engine) -> None:
        """Announce a larger disk to the frontend: `sectors`, then `state` once more (T34)."""
        if engine.sectors > self._sectors:
            self._sectors = engine.sectors
            await self._dev.republish({"sectors": engine.sectors})
            self._dev.log.info("disk.grown", sectors=engine.sectors)
        elif engine.sectors < self._sectors:
            self._log_once(
                f"the image has become smaller: {engine.sectors} sectors, and the guest knows {self._sectors}"
            )

    def _log_once(self, problem: str) -> None:
        """Log a problem, unless it was logged just before."""
        if problem != self._logged:
            self._logged = problem
            self._dev.log.warning("disk.failed", reason=problem)
