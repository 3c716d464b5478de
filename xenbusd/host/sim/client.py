"""The host interface of a process on the simulated host."""

from __future__ import annotations

import os
import socket

from xenbusd.errors import StoreLost, UsageError
from xenbusd.host.interface import Host
from xenbusd.host.sim.connection import BrokerConnection
from xenbusd.host.sim.events import SimEventChannels
from xenbusd.host.sim.grants import SimGrants
from xenbusd.host.sim.protocol import STORE_SUFFIX, Holdings, Verb, rows
from xenbusd.ids import DOM0, DOMID_FIRST_RESERVED, Domid
from xenbusd.process.descriptors import allow_many
from xenbusd.store.endpoint import Endpoint


class SimHost(Host):
    """A process of domain `domid`. The first process brings the domain to life, and the domain dies with the last one.

    Args:
        path: the broker's socket.
        domid: 0 .. 0x7FEF.

    Raises:
        UsageError: no broker answers at `path`, or no domain can have this number.
    """

    def __init__(self, path: str, domid: Domid = DOM0) -> None:
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise UsageError(f"there can be no domain {domid}: a domid is from 0 to {DOMID_FIRST_RESERVED - 1}")
        self.name = f"sim:{path}"
        self.domid = domid
        self._broker = BrokerConnection(path)
        reply = self._broker.call(Verb.HELLO, domid)
        if reply.errno:
            self._broker.close()
            raise UsageError(f"{path} is no simulated host of this version: {os.strerror(reply.errno)}")
        allow_many()
        self.grants = SimGrants(self._broker)
        self.events = self._events = SimEventChannels(self._broker)
        self.store = Endpoint(
            f"sim:{path} domain {domid}", self._open_store, path + STORE_SUFFIX if domid == DOM0 else None
        )

    def close(self) -> None:
        """See `Host.close`. Pages whose views are alive stay readable here until these are dropped."""
        self._events.close()
        self._broker.close()

    def _open_store(self) -> socket.socket:
        reply = self._broker.call(Verb.STORE)
        if reply.errno:
            raise StoreLost(f"no store answers at {self.store.name}: {os.strerror(reply.errno)}")
        return socket.socket(fileno=reply.fds[0])


def census(path: str) -> dict[Domid, Holdings]:
    """Ask the broker at `path` for the holdings of each domain. For tests, and to find leaks.

    When this returns, the broker has closed its end of the connection, too: the census itself leaves nothing behind
    (D69).

    Raises:
        UsageError: no broker answers there.
    """
    broker = BrokerConnection(path)
    try:
        reply = broker.call(Verb.CENSUS)
    finally:
        broker.part()
    if reply.errno:
        raise UsageError(f"{path} is no simulated host of this version: {os.strerror(reply.errno)}")
    return {Domid(row.domid): row for row in rows(reply.words)}
