"""The asyncio client of a store: many requests in flight on one connection that comes back when it is lost."""

from __future__ import annotations

import asyncio
import random
from asyncio import Future
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from xenbusd.errors import LocalProtocolError, StoreError, StoreLost, XenbusdError
from xenbusd.store import transaction
from xenbusd.store.accessor import Accessor, wire_path
from xenbusd.store.endpoint import Endpoint
from xenbusd.store.session import Answer, Session
from xenbusd.store.transaction import Transaction, forsake
from xenbusd.store.transport import Transport, connect
from xenbusd.store.watch import Watch
from xenbusd.store.wire import Op

T = TypeVar("T")

RECONNECT_FIRST_S = 0.05
RECONNECT_MAX_S = 2.0
"""The waits before connecting again, first and longest: the wait doubles until the store has sent something."""

GUEST_TRANSACTIONS_MAX = 8
"""Open transactions at a time for a client with a window: a guest's quota is 10, for all its connections."""


class StoreClient(Accessor):
    """A connection to a store. Use it as `async with`, or `open` and `close` it.

    Each operation queues its request at once and returns a future, so that several calls followed by several awaits
    travel together; requests queued in one turn of the event loop leave in one write.

    A lost connection is no error here: requests wait, watches are registered again (each fires, so that its holder
    re-reads everything), requests without an answer are sent again, transactions are run again. Every request may be
    repeated, except that a repeated WRITE may undo a change that another domain made in between.

    Args:
        endpoint: where the store is.
        window: most requests in flight; 0 for no limit. A guest's quota is 20. An endpoint that takes one at a time
            gets no more, whatever `window` is.
    """

    def __init__(self, endpoint: Endpoint, *, window: int = 0) -> None:
        self.connected = False
        self.closed = False
        self.reconnects = 0
        """Reconnections so far."""
        self.on_lost: Callable[[str], object] | None = None
        """Called with the reason when the connection is lost."""
        self.on_back: Callable[[], object] | None = None
        """Called after a reconnection, once the watches are queued for registration."""
        self._endpoint = endpoint
        self._session: Session[Future[Any], Watch] = Session(window=1 if endpoint.one_at_a_time else window)
        self._transactions = asyncio.Semaphore(GUEST_TRANSACTIONS_MAX) if window else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Transport | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._flushing = False
        self._delay_s = RECONNECT_FIRST_S

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self.connected else "not connected"
        return f"StoreClient({self._endpoint.name}, {state}, {self._session.pending} pending)"

    @property
    def requests(self) -> int:
        """Requests asked so far."""
        return self._session.requests

    @property
    def strays(self) -> int:
        """Packets of the store that answered no request, and were dropped."""
        return self._session.strays

    @property
    def generation(self) -> int:
        """Connections lost so far."""
        return self._session.generation

    # -- opening and closing --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect.

        Raises:
            StoreLost: no store answers there now.
        """
        if self._loop is not None:
            raise LocalProtocolError("a store client is opened once; make another one")
        self._loop = asyncio.get_running_loop()
        try:
            self._begin(await self._connect())
        except BaseException:
            self._loop = None
            raise

    async def close(self) -> None:
        """Close the connection. Requests without an answer fail with `StoreLost`, and so does every watch.
        Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.connected = False
        requests, watches = self._session.end()
        self._fail(requests)
        for watch in watches:
            watch.fail(self._over())
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting])
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def set_window(self, window: int) -> None:
        """Change the window that was given at first, for a client that learns from the store which domain it serves.
        No request may be in flight."""
        if self._session.pending:
            raise LocalProtocolError("the window cannot be changed while requests are in flight")
        self._session.window = 1 if self._endpoint.one_at_a_time else window
        self._transactions = asyncio.Semaphore(GUEST_TRANSACTIONS_MAX) if window else None

    # -- requests that exist outside transactions only -------------------------------------------------------------

    def introduce(self, domid: int, mfn: int, port: int) -> Future[None]:
        """Tell the store of a new domain: the frame of its store ring and the port to it.

        Raises:
            AccessDenied
        """
        return self._about_domain(Op.INTRODUCE, domid, mfn, port)

    def release(self, domid: int) -> Future[None]:
        """Tell the store to forget a domain.

        Raises:
            AccessDenied, NodeNotFound
        """
        return self._about_domain(Op.RELEASE, domid)

    def resume(self, domid: int) -> Future[None]:
        """Tell the store that a domain runs on after it was shut down.

        Raises:
            AccessDenied, NodeNotFound
        """
        return self._about_domain(Op.RESUME, domid)

    def set_target(self, domid: int, target: int) -> Future[None]:
        """Give a domain all the rights of another domain, its target.

        Raises:
            AccessDenied, NodeNotFound
        """
        return self._about_domain(Op.SET_TARGET, domid, target)

    def is_domain_introduced(self, domid: int) -> Future[bool]:
        """Return whether the store has been introduced to a domain."""
        return self._about_domain(Op.IS_DOMAIN_INTRODUCED, domid)

    def get_domain_path(self, domid: int) -> Future[str]:
        """Return the path that a domain's relative paths start from: "/local/domain/3"."""
        return self._about_domain(Op.GET_DOMAIN_PATH, domid)

    async def watch(self, path: str, *, depth: int = 0, wake: Callable[[], None] | None = None) -> Watch:
        """Watch a node and all below it. The first hint comes at once, whether the node exists or not.

        Args:
            path: a node, or "@introduceDomain" or "@releaseDomain".
            depth: components below `path` that hints keep; 0: the only hint is `path` itself.
            wake: called in a loop turn of its own whenever a hint arrives while there was none.

        Raises:
            AccessDenied, QuotaExceeded
            InvalidPath: nothing was sent.
        """
        wire = wire_path(path)
        watch = Watch(path, depth=depth, wake=wake, unwatch=self._unwatch)
        watch.token = self._session.enlist(watch, path, wire)
        try:
            await self.ask(Op.WATCH, path, wire + watch.token.encode() + b"\0")
        except asyncio.CancelledError:
            forsake(asyncio.ensure_future(self._unwatch(watch)))
            raise
        except BaseException:
            self._session.dismiss(watch.token)
            raise
        return watch

    async def transaction(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `body` in a transaction and commit it; return what it returned.

        The whole body is run again when nodes that it read have changed meanwhile, and when the connection was lost; if
        that happened during the commit, the changes may have been made already. So a body must read every node on which
        it decides, and have no other effects. A body that raises is aborted, and its exception is passed on. A body
        without requests commits nothing.

        Raises:
            TransactionConflict: each of 20 further attempts met a conflict, too.
            StoreError: as the body's requests raise, including those that it did not wait for.
        """
        if self._transactions is None:
            return await transaction.run(self, body)
        async with self._transactions:
            return await transaction.run(self, body)

    # -- requests -------------------------------------------------------------------------------------------------

    def ask(self, op: int, path: str, payload: bytes, tx_id: int = 0, answer: Future[Any] | None = None) -> Future[Any]:
        """Queue any request, and return the future of its answer. The methods above are easier to read.

        Args:
            answer: the future to use; a new one by default.

        Raises:
            InvalidPayload: it is longer than a packet carries; nothing was queued.
        """
        loop = self._loop
        if loop is None:
            raise LocalProtocolError("open the store client before using it")
        future = loop.create_future() if answer is None else answer
        if self.closed:
            future.set_exception(self._over())
            return future
        self._session.ask(future, op, path, payload, tx_id)
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush)
        return future

    _ask = ask

    def _about_domain(self, op: Op, *numbers: int) -> Future[Any]:
        return self.ask(op, "", b"".join(b"%d\0" % number for number in numbers))

    async def _unwatch(self, watch: Watch) -> None:
        payload = self._session.dismiss(watch.token)
        if payload is not None and self.connected:
            with suppress(StoreError, StoreLost):
                await self.ask(Op.UNWATCH, watch.path, payload)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None and (packets := self._session.take()):
            self._transport.send(packets)

    def _settle(self, answers: Iterable[Answer[Future[Any]]]) -> None:
        for future, error, value in answers:
            if future.done():  # cancelled by its asker
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _fail(self, requests: Iterable[Future[Any]]) -> None:
        for request in requests:
            forsake(request)
            if not request.done():
                request.set_exception(self._over())

    def _over(self) -> StoreLost:
        why = "was closed" if self.closed else "ended"
        return StoreLost(f"the connection to the store at {self._endpoint.name} {why}")

    # -- the connection -------------------------------------------------------------------------------------------

    async def _connect(self) -> Transport:
        self._session.listen_afresh()
        transport = await connect(self._endpoint, received=self._received, refused=self._refused, ended=self._ended)
        if transport.gone:
            raise StoreLost(f"the store at {self._endpoint.name} closed the connection at once")
        return transport

    def _begin(self, transport: Transport) -> None:
        self._session.payload_max = transport.payload_max
        self._transport = transport
        self.connected = True
        if self._session.fault is None:
            self._flush()
        else:  # the store sent bytes before any request
            transport.abort()

    def _received(self, data: bytes) -> None:
        answers, events = self._session.receive(data)
        self._settle(answers)
        for watch, path in events:
            watch.hint(path)
        if self._session.fault is None:
            self._delay_s = RECONNECT_FIRST_S
            if not self._flushing:
                self._flush()
        elif self._transport is not None:
            self._transport.abort()

    def _refused(self, packet: bytes, code: int) -> None:
        self._settle(self._session.refused(packet, code))
        if not self._flushing and self._loop is not None:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _ended(self, reason: str) -> None:
        if self._transport is None or self._loop is None:
            return  # while connecting: `_connect` finds out
        self._transport = None
        self.connected = False
        if self._session.fault is not None:
            reason = f"the store sent {self._session.fault}"
        dead, answers = self._session.lost()
        self._settle(answers)
        self._fail(dead)
        if self.on_lost is not None:
            self._loop.call_soon(self.on_lost, reason)
        self._reconnecting = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        while True:
            delay_s, self._delay_s = self._delay_s, min(self._delay_s * 2, RECONNECT_MAX_S)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            with suppress(XenbusdError, OSError):
                transport = await self._connect()
                break
        self.reconnects += 1
        self._session.resume(self._rewatcher)
        self._begin(transport)
        if self.on_back is not None:
            asyncio.get_running_loop().call_soon(self.on_back)

    def _rewatcher(self, watch: Watch) -> Future[Any]:
        def judge(done: Future[Any]) -> None:
            error = done.exception()
            if isinstance(error, XenbusdError):
                watch.fail(error)

        future: Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(judge)
        return future
