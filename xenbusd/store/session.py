"""One client's protocol state with a store: the request of each id, the watch of each token. Pure: no I/O here.

Bytes go in by `receive`, packets come out by `take`. An answer comes with the holder that its request was queued with:
an asyncio future, or a plain string in a test. A session outlives its connection: `lost` and `resume` carry its watches
and its unanswered requests over to the next one.

Source: xen/include/public/io/xs_wire.h, docs/misc/xenstore.txt;
Linux drivers/xen/xenbus/xenbus_dev_frontend.c for the differences of the character device.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

from xenbusd.errors import (
    AccessDenied,
    NodeExists,
    NodeNotFound,
    QuotaExceeded,
    StoreError,
    TransactionConflict,
)
from xenbusd.store.wire import HEADER, PAYLOAD_MAX, U32, InvalidPayload, Op, errno_number

H = TypeVar("H")
"""The caller's object that is returned with the answer to a request."""
W = TypeVar("W")
"""The caller's object that is returned with the events of a watch."""

Answer: TypeAlias = tuple[H, StoreError | None, Any]
"""Holder; the error with which the store refused the request, or None; value."""

TOKEN_DIGITS = 6
"""Hexadecimal digits of a watch token: constant, so that no token makes an event longer than another (XSA-324)."""

DIRECTORY_CHANCES = 2
"""A listing during which the store closes the connection this often in a row is given up as too large."""

_ERRORS: dict[int, type[StoreError]] = {
    errno.ENOENT: NodeNotFound,
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EEXIST: NodeExists,
    errno.ENOSPC: QuotaExceeded,
    errno.E2BIG: QuotaExceeded,
    errno.EDQUOT: QuotaExceeded,
}

_HEADER_SIZE = HEADER.size
_READ = int(Op.READ)
_ERROR = int(Op.ERROR)
_WATCH_EVENT = int(Op.WATCH_EVENT)
_WATCH = int(Op.WATCH)
_UNWATCH = int(Op.UNWATCH)
_DIRECTORY = int(Op.DIRECTORY)
_START = int(Op.TRANSACTION_START)
_KNOWN = frozenset(map(int, Op))


def error_for(op: int, path: str, code: int, *, tx_id: int = 0) -> StoreError:
    """Return the exception that stands for an errno of the store."""
    if code == errno.EAGAIN and tx_id:
        return TransactionConflict(Op(op).name, path, code)
    return _ERRORS.get(code, StoreError)(Op(op).name, path, code)


def names(payload: bytes) -> list[str]:
    """Split the NUL-terminated names of a listing or a permission list."""
    return [name.decode("ascii", "replace") for name in payload.split(b"\0") if name]


def _acknowledged(payload: bytes) -> None:
    if payload.rstrip(b"\0") != b"OK":
        raise ValueError(payload)


def _truth(payload: bytes) -> bool:
    return {b"T": True, b"F": False}[payload.rstrip(b"\0")]


def _number(payload: bytes) -> int:
    return int(payload.rstrip(b"\0"))


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("ascii", "replace")


_DECODE: dict[int, Callable[[bytes], object]] = {
    Op.READ: bytes,
    Op.DIRECTORY: names,
    Op.DIRECTORY_PART: bytes,
    Op.GET_PERMS: names,
    Op.GET_DOMAIN_PATH: _text,
    Op.IS_DOMAIN_INTRODUCED: _truth,
    Op.TRANSACTION_START: _number,
}
"""How an answer's payload becomes a value; every other operation is acknowledged with OK."""


class Session(Generic[H, W]):
    """Request ids, watch tokens and unanswered requests of one client.

    Args:
        window: most requests in flight; 0 for no limit. Requests beyond it wait in `take`'s queue.
        first_id: the first request id, 1 .. 2^32 - 1. Never 0: with it older kernels answer WATCH and UNWATCH.
    """

    def __init__(self, *, window: int = 0, first_id: int = 1) -> None:
        self.payload_max = PAYLOAD_MAX
        """Bytes of payload that the connection carries; the character device carries fewer."""
        self.fault: str | None = None
        """The protocol violation of the store, after which the connection must be closed; None if there was none."""
        self.generation = 0
        """Connections lost so far. A transaction id is good within one generation only."""
        self.requests = 0
        self.strays = 0
        """Well-formed packets that answered no request and belonged to no watch."""
        self.window = window
        """Most requests in flight; may be changed while there are none."""
        self._next_id = first_id
        self._next_token = 0
        self._rest = b""
        self._asked: dict[int, tuple[H, int, str, int, bytes]] = {}
        """By request id, oldest first: holder, operation, path, transaction id, packet."""
        self._ready: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self._watches: dict[bytes, tuple[W, str, bytes]] = {}
        """By token: the caller's watch, its path, and the payload that registers it."""
        self._suspect: tuple[str, int] | None = None
        """The listing during which the connection was lost, and how many times."""

    @property
    def pending(self) -> int:
        """Requests that have no answer yet."""
        return len(self._asked)

    # -- asking ---------------------------------------------------------------------------------------------------

    def ask(self, holder: H, op: int, path: str, payload: bytes, tx_id: int = 0) -> None:
        """Queue a request; its answer will come out of `receive` with `holder`.

        Args:
            path: for error messages only; `payload` has it as the wire wants it.

        Raises:
            InvalidPayload: it is longer than the connection carries; nothing is queued.
        """
        if len(payload) > self.payload_max:
            raise InvalidPayload(
                f"a XenStore request carries at most {self.payload_max} bytes here, path and value together; "
                f"this one has {len(payload)}: store a shorter value, or several nodes"
            )
        asked = self._asked
        req_id = self._next_id
        while req_id in asked:
            req_id = req_id + 1 if req_id < U32 else 1
        self._next_id = req_id + 1 if req_id < U32 else 1
        self.requests += 1
        packet = HEADER.pack(op, req_id, tx_id, len(payload)) + payload
        if self.window and len(asked) - len(self._waiting) >= self.window:
            self._waiting.append(packet)
        else:
            self._ready.append(packet)
        asked[req_id] = (holder, op, path, tx_id, packet)

    def take(self) -> list[bytes]:
        """Return the packets that may be sent now, in order; each is returned once."""
        ready, self._ready = self._ready, []
        return ready

    # -- watches --------------------------------------------------------------------------------------------------

    def enlist(self, watch: W, path: str, wire_path: bytes) -> str:
        """Give a watch a token of its own (T3): from now on its events come out of `receive`.

        The caller queues the WATCH.
        """
        while True:
            token = f"{self._next_token:0{TOKEN_DIGITS}x}".encode()
            self._next_token = (self._next_token + 1) % 16**TOKEN_DIGITS
            if token not in self._watches:
                break
        self._watches[token] = (watch, path, wire_path + token + b"\0")
        return token.decode()

    def dismiss(self, token: str) -> bytes | None:
        """Forget a watch: its events are dropped from now on.

        Returns: the payload of the UNWATCH to queue, or None if the watch was forgotten before.
        """
        known = self._watches.pop(token.encode(), None)
        return known[2] if known else None

    # -- answers --------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> tuple[list[Answer[H]], list[tuple[W, str]]]:
        """Take in bytes, cut anywhere.

        Returns: the answers as (holder, error or None, value), and the watch events as (watch, path).
            Check `fault` afterwards: once it is set, nothing more is read.
        """
        if self.fault is not None:
            return [], []
        if self._rest:
            data = self._rest + data
        answers: list[Answer[H]] = []
        events: list[tuple[W, str]] = []
        unpack, asked = HEADER.unpack_from, self._asked
        at, end, limit = 0, len(data), PAYLOAD_MAX
        while at + _HEADER_SIZE <= end:
            op, req_id, _, size = unpack(data, at)
            start = at + _HEADER_SIZE
            stop = start + size
            if size > limit:
                self.fault = f"a packet of {size} bytes of payload, over {limit}"
                break
            if stop > end:
                break
            at = stop
            entry = asked.get(req_id)
            if entry is not None and entry[1] == op == _READ:
                del asked[req_id]
                answers.append((entry[0], None, data[start:stop]))
            elif op == _WATCH_EVENT:
                self._event(data[start:stop], events)
            elif not self._answer(op, req_id, data[start:stop], answers):
                break
        self._rest = b"" if self.fault is not None else data[at:]
        if self._waiting:
            self._advance()
        return answers, events

    def refused(self, packet: bytes, code: int) -> list[Answer[H]]:
        """Record that the character device refused a packet with an errno: that is its answer."""
        op, req_id, tx_id, _ = HEADER.unpack_from(packet)
        entry = self._asked.pop(req_id, None)
        self._advance()
        return [] if entry is None else [(entry[0], error_for(op, entry[2], code, tx_id=tx_id), None)]

    def _event(self, payload: bytes, events: list[tuple[W, str]]) -> None:
        fields = payload.split(b"\0", 2)
        known = self._watches.get(fields[1]) if len(fields) > 1 else None
        if known is None:
            self.strays += 1
        else:
            events.append((known[0], fields[0].decode("ascii", "replace")))

    def _answer(self, op: int, req_id: int, payload: bytes, answers: list[Answer[H]]) -> bool:
        """Match an answer that is not a plain READ's. Returns False when the stream is no longer valid."""
        if req_id == 0 and op in (_WATCH, _UNWATCH):
            # Older kernels lose the request id of these two, which they answer themselves, in order.
            req_id = next((number for number, asked in self._asked.items() if asked[1] == op), 0)
        entry = self._asked.get(req_id)
        if entry is None:
            if op not in _KNOWN:
                self.fault = f"a packet of unknown type {op}"
                return False
            self.strays += 1
            return True
        holder, asked_op, path, tx_id, _ = entry
        error: StoreError | None
        value: object
        if op == _ERROR:
            error, value = error_for(asked_op, path, errno_number(payload), tx_id=tx_id), None
        elif op == asked_op:
            error, value = self._decode(op, path, payload)
        else:
            self.fault = f"an answer of type {op} to {Op(asked_op).name}"
            return False
        del self._asked[req_id]
        answers.append((holder, error, value))
        return True

    def _decode(self, op: int, path: str, payload: bytes) -> tuple[StoreError | None, object]:
        try:
            value = _DECODE.get(op, _acknowledged)(payload)
        except (ValueError, KeyError):
            return StoreError(Op(op).name, path, errno.EIO), None
        if op == _START:
            # The holder learns the id only at its next turn; by then this connection may be gone.
            return None, (value, self.generation)
        if op == _DIRECTORY and self._suspect is not None and self._suspect[0] == path:
            self._suspect = None
        return None, value

    def _advance(self) -> None:
        """Release as many waiting packets as the window allows."""
        room = self.window - (len(self._asked) - len(self._waiting))
        for _ in range(min(room, len(self._waiting))):
            self._ready.append(self._waiting.popleft())

    # -- the connection ends, another begins -----------------------------------------------------------------------

    def listen_afresh(self) -> None:
        """Record that the next bytes are from a new connection, at the beginning of a packet."""
        self._rest, self.fault = b"", None

    def lost(self) -> tuple[list[H], list[Answer[H]]]:
        """Record that the connection ended. Requests that can be repeated stay; `resume` queues them.

        Returns: the holders of requests within transactions, which died with the connection; and the answers that
            are certain now: an UNWATCH is done, and a listing that twice ended the connection is too large
            (oxenstored 4.17 closes it when a listing passes 4096 bytes).
        """
        self.generation += 1
        self.listen_afresh()
        dead: list[H] = []
        answers: list[Answer[H]] = []
        verdict = self._judge()
        for req_id, (holder, op, path, tx_id, packet) in list(self._asked.items()):
            if req_id == verdict:
                too_large = QuotaExceeded(Op.DIRECTORY.name, path, errno.E2BIG)
                too_large.context["closed"] = True
                answers.append((holder, too_large, None))
            elif tx_id:
                dead.append(holder)
            elif op == _UNWATCH or (op == _WATCH and self._token(packet) not in self._watches):
                answers.append((holder, None, None))
            else:
                continue
            del self._asked[req_id]
        return dead, answers

    def resume(self, rewatcher: Callable[[W], H]) -> None:
        """Queue for a new connection: first every watch, then every request without an answer, in order.

        Args:
            rewatcher: makes the holder for the answer to a watch's new registration.
        """
        again, self._asked = self._asked, {}
        self._ready.clear()
        self._waiting.clear()
        asked = {self._token(packet) for _, op, _, _, packet in again.values() if op == _WATCH}
        for token, (watch, path, payload) in self._watches.items():
            if token not in asked:
                self.ask(rewatcher(watch), _WATCH, path, payload)
        for holder, op, path, _, packet in again.values():
            if op == _WATCH and self._token(packet) not in self._watches:
                continue
            self.ask(holder, op, path, packet[_HEADER_SIZE:])
            self.requests -= 1

    def end(self) -> tuple[list[H], list[W]]:
        """Forget everything. Returns: the holders without an answer, and the watches."""
        holders, watches = [entry[0] for entry in self._asked.values()], [entry[0] for entry in self._watches.values()]
        self._asked.clear()
        self._watches.clear()
        self._ready.clear()
        self._waiting.clear()
        return holders, watches

    def _judge(self) -> int | None:
        """Return the id of the listing that must have ended the connection, once it has done so often enough.

        A store answers in order: the request that ended the connection is the oldest one without an answer.
        """
        req_id, entry = next(iter(self._asked.items()), (0, None))
        if entry is None or entry[1] != _DIRECTORY:
            return None
        path = entry[2]
        times = self._suspect[1] + 1 if self._suspect is not None and self._suspect[0] == path else 1
        self._suspect = None if times >= DIRECTORY_CHANCES else (path, times)
        return req_id if times >= DIRECTORY_CHANCES else None

    @staticmethod
    def _token(packet: bytes) -> bytes:
        return packet[_HEADER_SIZE:].split(b"\0")[1]
