"""A caller of the store's pure part: sends requests by operation, and collects its events."""

from __future__ import annotations

import errno

from xenbusd.store.server.caller import Caller
from xenbusd.store.server.operations import perform
from xenbusd.store.server.quotas import Refusal
from xenbusd.store.server.state import State
from xenbusd.store.wire import HEADER, Op


class Asker:
    """One caller, acting as `domid`."""

    def __init__(self, state: State, domid: int = 0) -> None:
        self.state = state
        self.wakes = 0
        self.dropped = False
        self.caller = Caller(state.domains.get(domid), self._wake, self._drop)
        state.join(self.caller)

    def _wake(self) -> None:
        self.wakes += 1

    def _drop(self) -> None:
        self.dropped = True
        self.state.leave(self.caller)

    def raw(self, op: int, payload: bytes, tx: int = 0) -> bytes:
        """Send a request with exactly this payload."""
        return perform(self.state, self.caller, op, tx, payload)

    def ask(self, op: int, *words: str, tx: int = 0) -> str:
        """Send strings, each ended by a NUL, except the last one of WRITE."""
        payload = "\0".join(words) if op == Op.WRITE else "".join(f"{word}\0" for word in words)
        return self.raw(op, payload.encode(), tx).decode()

    def refused(self, op: int, *words: str, tx: int = 0) -> str:
        """Send a request that must be refused, and return the name of the error."""
        try:
            answer = self.ask(op, *words, tx=tx)
        except Refusal as refusal:
            return errno.errorcode[refusal.code]
        raise AssertionError(f"{Op(op).name} {words} was answered {answer!r}")

    def names(self, path: str, tx: int = 0) -> list[str]:
        """The children of a node."""
        return self.ask(Op.DIRECTORY, path, tx=tx).split("\0")[:-1]

    def start(self) -> int:
        """Begin a transaction."""
        return int(self.ask(Op.TRANSACTION_START, "")[:-1])

    def commit(self, tx: int) -> None:
        """Commit a transaction."""
        assert self.ask(Op.TRANSACTION_END, "T", tx=tx) == "OK\0"

    def events(self) -> list[tuple[str, str]]:
        """Take the events: (path, token)."""
        data = self.caller.take_events()
        taken = []
        while data:
            op, req_id, tx_id, size = HEADER.unpack_from(data)
            assert (op, req_id, tx_id) == (Op.WATCH_EVENT, 0, 0)
            path, token, rest = data[HEADER.size : HEADER.size + size].decode().split("\0")
            assert rest == ""
            taken.append((path, token))
            data = data[HEADER.size + size :]
        return taken
