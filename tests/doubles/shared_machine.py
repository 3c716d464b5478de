"""A machine in one process: records which end shares, maps and binds which pages and ports."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import count
from typing import TypeVar

from xenbusd.errors import EventChannelError, GrantError
from xenbusd.host.interface import Copy, EventChannels, Grants, Host, Mapping, Share
from xenbusd.ids import PAGE_SIZE, Domid, Gref, Port

T = TypeVar("T")


class Machine:
    """The shares, mappings and bindings of both ends."""

    def __init__(self) -> None:
        self.numbers = count(8)
        self.shared: dict[Gref, memoryview] = {}
        self.ports: dict[Port, Domid] = {}
        self.bound: dict[Port, Port] = {}
        """A backend's port -> the frontend's."""


class FakeShare(Share):
    """Pages of a frontend."""

    def __init__(self, host: FakeHost, pages: int) -> None:
        self.view = memoryview(bytearray(pages * PAGE_SIZE))
        self.grefs = tuple(Gref(next(host.machine.numbers)) for _ in range(pages))
        self._host = host
        for gref in self.grefs:
            host.machine.shared[gref] = self.view
        host.shares.append(self)

    def unshare(self) -> None:
        if self in self._host.shares:
            self._host.shares.remove(self)
            for gref in self.grefs:
                del self._host.machine.shared[gref]


class FakeMapping(Mapping):
    """A frontend's pages in the backend."""

    def __init__(self, host: FakeHost, gref: Gref) -> None:
        self.gref = gref
        self.view = host.machine.shared[gref][:]
        self._host = host
        host.mappings.append(self)

    def unmap(self) -> None:
        if self in self._host.mappings:
            self._host.mappings.remove(self)


class FakeHost(Host, Grants, EventChannels):
    """One process's host interface."""

    fd = -1

    def __init__(self, machine: Machine, domid: Domid) -> None:
        self.name = "fake"
        self.machine = machine
        self.domid = domid
        self.grants = self.events = self
        self.shares: list[FakeShare] = []
        self.mappings: list[FakeMapping] = []
        self.ports: list[Port] = []

    def map(self, domid: Domid, grefs: Sequence[Gref], *, writable: bool = True) -> FakeMapping:
        del writable
        if grefs[0] not in self.machine.shared:
            raise GrantError("xengnttab_map_grant_refs", errno.EINVAL, f"domain {domid}, {grefs}")
        return FakeMapping(self, grefs[0])

    def copy(self, segments: Sequence[Copy]) -> list[int]:
        return [0] * len(segments)

    def share(self, domid: Domid, pages: int, *, writable: bool = True) -> FakeShare:
        del domid, writable
        return FakeShare(self, pages)

    def alloc_unbound(self, domid: Domid) -> Port:
        del domid
        port = Port(next(self.machine.numbers))
        self.machine.ports[port] = self.domid
        self.ports.append(port)
        return port

    def bind_interdomain(self, domid: Domid, otherend_port: Port) -> Port:
        if self.machine.ports.get(otherend_port) != domid or otherend_port in self.machine.bound.values():
            raise EventChannelError("xenevtchn_bind_interdomain", errno.EINVAL, f"domain {domid}, {otherend_port}")
        port = Port(next(self.machine.numbers))
        self.machine.bound[port] = otherend_port
        self.ports.append(port)
        return port

    def notify(self, port: Port) -> None:
        del port

    def pending(self) -> list[Port]:
        return []

    def unmask(self, port: Port) -> None:
        del port

    def unbind(self, port: Port) -> None:
        if port in self.ports:
            self.ports.remove(port)
        self.machine.bound.pop(port, None)
        self.machine.ports.pop(port, None)
        for back, front in list(self.machine.bound.items()):
            if front == port:
                del self.machine.bound[back]

    def close(self) -> None:
        for share in list(self.shares):
            share.unshare()
        self.mappings.clear()
        for port in list(self.ports):
            self.unbind(port)
