"""One connection as the store sees it: its domain, watches, transactions, and the events that wait for it. Pure."""

from __future__ import annotations

from collections.abc import Callable

from xenbusd.store.server.domains import Domain
from xenbusd.store.server.transactions import Transaction
from xenbusd.store.server.watches import Watch
from xenbusd.store.wire import HEADER, PAYLOAD_MAX, Op


class Caller:
    """The store's record of one connection.

    Args:
        domain: the domain that it acts as.
        wake: called when there are events to take and there were none before.
        drop: called when the connection must end at once: its domain has gone, or it does not take its events.
    """

    def __init__(self, domain: Domain, wake: Callable[[], None], drop: Callable[[], None]) -> None:
        self.domain = domain
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        """By absolute path and token."""
        self.transactions: dict[int, Transaction] = {}
        self.last_transaction = 0
        self.drop = drop
        self._wake = wake
        self._events: dict[tuple[Watch, bytes], bytes] = {}
        self._event_bytes = 0

    def notify(self, watch: Watch, path: bytes) -> None:
        """Keep an event until it is taken; one that is kept already is not kept twice (T2).

        An unprivileged connection that leaves too many untaken is dropped: without some of them its picture of the
        store would be wrong, and a new connection starts with a right one.
        """
        key = (watch, path)
        if key in self._events:
            return
        payload = watch.event(path)
        if len(payload) > PAYLOAD_MAX:
            return
        if not self._events:
            self._wake()
        self._events[key] = payload
        self._event_bytes += HEADER.size + len(payload)
        if self._event_bytes > self.domain.quotas.unsent_event_bytes and not self.domain.privileged:
            self._events.clear()
            self._event_bytes = 0
            self.drop()

    def take_events(self) -> bytes:
        """Return all events kept, as packets in the order in which they came."""
        if not self._events:
            return b""
        pack = HEADER.pack
        packets = b"".join([pack(Op.WATCH_EVENT, 0, 0, len(event)) + event for event in self._events.values()])
        self._events.clear()
        self._event_bytes = 0
        return packets

    def discard(self, watch: Watch) -> None:
        """Drop the events that are kept for a watch that was removed."""
        for key in [key for key in self._events if key[0] is watch]:
            self._event_bytes -= HEADER.size + len(self._events.pop(key))
