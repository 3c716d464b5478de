"""A simulated host in a thread of this process: for tests, and for programs that want one without a second process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread

from xenbusd.host.sim.broker import SimBroker


@contextmanager
def broker_in_thread(path: str) -> Iterator[SimBroker]:
    """Run a broker at `path` on an event loop of its own, for the length of a `with` block.

    A `SimHost` waits for its broker, so the two cannot live on one loop. The broker's own methods belong to its
    thread; use the sockets.

    Raises:
        UsageError: there can be no host at `path`.
    """
    started: Future[tuple[SimBroker, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        broker = SimBroker(path)
        stop = asyncio.Event()
        try:
            await broker.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result((broker, asyncio.get_running_loop(), stop))
        try:
            await stop.wait()
        finally:
            await broker.close()

    thread = Thread(target=asyncio.run, args=(serve(),), name=f"sim:{path}", daemon=True)
    thread.start()
    try:
        broker, loop, stop = started.result()
    except BaseException:
        thread.join()
        raise
    try:
        yield broker
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
