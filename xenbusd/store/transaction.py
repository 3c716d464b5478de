"""Transactions: a body's changes are made all at once or not at all; after a conflict the body is run again (T6)."""

from __future__ import annotations

import asyncio
import random
from asyncio import Future
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, TypeVar

from xenbusd.errors import LocalProtocolError, StoreLost, TransactionConflict
from xenbusd.store.accessor import Accessor
from xenbusd.store.wire import Op

T = TypeVar("T")

RETRIES_MAX = 20
"""How many times a transaction is run again after a conflict before it fails."""

BACKOFF_FIRST_S = 0.001
BACKOFF_MAX_S = 0.1
"""Upper bounds of the random waits before a transaction is run again; the first doubles up to the second."""


class Request(Future[Any]):
    """The answer to one request of a transaction, which knows whether its asker has seen it."""

    seen = False
    """The answer, an error included, was delivered by `await`, `result` or `exception`."""

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the answer."""
        try:
            return (yield from super().__await__())
        finally:
            self.seen = self.done()

    __iter__ = __await__

    def result(self) -> Any:
        """See `Future.result`."""
        self.seen = self.done()
        return super().result()

    def exception(self) -> BaseException | None:
        """See `Future.exception`."""
        self.seen = self.done()
        return super().exception()


class Asker(Protocol):
    """The part of the client that a transaction uses."""

    @property
    def closed(self) -> bool:
        """Whether the client was closed: no request will be answered any more."""

    @property
    def generation(self) -> int:
        """Connections lost so far: a transaction lives within one generation only."""

    def ask(self, op: int, path: str, payload: bytes, tx_id: int = 0, answer: Future[Any] | None = None) -> Future[Any]:
        """Queue a request. Return the future of its answer: `answer`, or a new one."""


class Transaction(Accessor):
    """The store as one transaction sees it: unchanging, and with its own changes. Made by `StoreClient.transaction`."""

    def __init__(self, asker: Asker, tx_id: int, generation: int) -> None:
        self._asker = asker
        self._tx_id = tx_id
        self._generation = generation
        self._requests: list[Request] = []
        self._ended = False

    @property
    def lost(self) -> bool:
        """Whether the connection on which the transaction was begun has ended, and the transaction with it."""
        return self._generation != self._asker.generation

    def _ask(self, op: int, path: str, payload: bytes) -> Future[Any]:
        if self._ended:
            raise LocalProtocolError(f"{Op(op).name} {path}: this transaction has ended; a body may not keep it")
        request = Request(loop=asyncio.get_running_loop())
        if self.lost:
            request.set_exception(StoreLost("the connection ended during a transaction; it is done again"))
        else:
            self._asker.ask(op, path, payload, self._tx_id, request)
        self._requests.append(request)
        return request

    async def commit(self) -> None:
        """Commit the changes. Requests that the body did not wait for are waited for, and must have succeeded.

        Raises:
            TransactionConflict: nodes that it read have changed meanwhile.
            StoreLost: the connection ended; the changes may have happened or not.
            StoreError: the error of a request that the body did not wait for.
        """
        if unanswered := [request for request in self._requests if not request.done()]:
            await asyncio.wait(unanswered)
        if self.lost:
            raise StoreLost("the connection ended during a transaction; it is done again")
        for request in self._requests:
            # The body may have handled an error that it has seen; an error that it has not seen must stop the commit.
            if not request.cancelled() and not request.seen:
                request.result()
        self._ended = True
        await self._end(commit=bool(self._requests))

    def abort(self) -> None:
        """Drop the changes, without waiting for the store. Does nothing once it has ended."""
        for request in self._requests:
            forsake(request)
        if not self._ended and not self.lost and not self._asker.closed:
            forsake(self._end(commit=False))
        self._ended = True

    def _end(self, *, commit: bool) -> Future[Any]:
        return self._asker.ask(Op.TRANSACTION_END, "", b"T\0" if commit else b"F\0", self._tx_id)


async def begin(asker: Asker) -> Transaction:
    """Begin a transaction.

    Raises:
        QuotaExceeded: the domain has too many open.
        StoreLost: the client was closed.
    """
    start = asker.ask(Op.TRANSACTION_START, "", b"\0")
    try:
        tx_id, generation = await asyncio.shield(start)
    except asyncio.CancelledError:
        # The store opens it all the same, and a transaction that is left open counts against the domain's quota.
        start.add_done_callback(lambda done: _abandon(asker, done))
        raise
    return Transaction(asker, tx_id, generation)


async def run(asker: Asker, body: Callable[[Transaction], Awaitable[T]]) -> T:
    """Run a body in a transaction and commit; see `StoreClient.transaction`."""
    conflicts = 0
    while True:
        transaction = await begin(asker)
        try:
            result = await body(transaction)
            await transaction.commit()
        except BaseException as error:
            transaction.abort()
            if isinstance(error, TransactionConflict) and conflicts < RETRIES_MAX:
                conflicts += 1
            elif not transaction.lost or asker.closed or not _by_loss(error):
                raise
        else:
            return result
        await asyncio.sleep(random.uniform(0, min(BACKOFF_FIRST_S * 2**conflicts, BACKOFF_MAX_S)))


def forsake(request: Future[Any]) -> None:
    """Ignore a request's answer, an error included."""
    if not request.done():
        request.add_done_callback(forsake)
    elif not request.cancelled():
        request.exception()


def _by_loss(error: BaseException | None) -> bool:
    """Whether an exception is due to a lost connection: is that error itself, has it in its group, or as its cause."""
    if isinstance(error, ExceptionGroup):
        return any(_by_loss(inner) for inner in error.exceptions)
    return isinstance(error, StoreLost) or (isinstance(error, Exception) and _by_loss(error.__cause__))


def _abandon(asker: Asker, start: Future[Any]) -> None:
    if not start.cancelled() and start.exception() is None:
        Transaction(asker, *start.result()).abort()
