"""Event channels on the simulated host: eventfds, handed over by the broker, in one epoll set.

The broker is needed to open and to close a port, never to use it. EPOLLONESHOT acts as /dev/xen/evtchn does: a port
that was delivered is silent until it is armed again, and is delivered at once if it was notified meanwhile.
"""

from __future__ import annotations

import errno
import os
import select

from xenbusd.errors import EventChannelError
from xenbusd.host.interface import EventChannels
from xenbusd.host.sim.connection import BrokerConnection, Reply
from xenbusd.host.sim.protocol import Verb
from xenbusd.ids import Domid, Port

_ARMED = select.EPOLLIN | select.EPOLLONESHOT
_ONE = (1).to_bytes(8, "little")
"""The bytes that set an eventfd."""
_AT_ONCE = 256
"""Ports taken in one call; `fd` stays readable while there are more."""


class SimEventChannels(EventChannels):
    """The ports of this process.

    Args:
        broker: the connection through which they are held.
    """

    def __init__(self, broker: BrokerConnection) -> None:
        self._broker = broker
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        self._ports: dict[int, Port] = {}
        """Eventfd that we wait on -> its port."""
        self._waits: dict[Port, int] = {}
        self._signals: dict[Port, int] = {}

    def alloc_unbound(self, domid: Domid) -> Port:
        """See `EventChannels.alloc_unbound`."""
        reply = self._broker.call(Verb.ALLOC_UNBOUND, domid)
        return self._take(reply, "xenevtchn_bind_unbound_port", f"domain {domid}")

    def bind_interdomain(self, domid: Domid, otherend_port: Port) -> Port:
        """See `EventChannels.bind_interdomain`."""
        reply = self._broker.call(Verb.BIND_INTERDOMAIN, domid, otherend_port)
        return self._take(reply, "xenevtchn_bind_interdomain", f"domain {domid}, port {otherend_port}")

    def notify(self, port: Port) -> None:
        """See `EventChannels.notify`."""
        signal = self._signals.get(port)
        if signal is None:
            raise EventChannelError("xenevtchn_notify", errno.ENOTCONN, f"port {port}")
        try:
            os.write(signal, _ONE)
        except BlockingIOError:
            return  # its counter is full: the port is pending already

    def pending(self) -> list[Port]:
        """See `EventChannels.pending`."""
        ports = []
        for fd, _ in self._epoll.poll(0, _AT_ONCE):
            try:
                os.read(fd, 8)
            except BlockingIOError:
                self._epoll.modify(fd, _ARMED)  # spurious
                continue
            ports.append(self._ports[fd])
        return ports

    def unmask(self, port: Port) -> None:
        """See `EventChannels.unmask`."""
        wait = self._waits.get(port)
        if wait is not None:  # otherwise closed meanwhile, which is no error on a real host either
            self._epoll.modify(wait, _ARMED)

    def unbind(self, port: Port) -> None:
        """See `EventChannels.unbind`."""
        wait = self._waits.pop(port, None)
        if wait is None:
            return
        del self._ports[wait]
        # Explicitly: the broker has the same file open, so closing our descriptor removes it from no set.
        self._epoll.unregister(wait)
        os.close(wait)
        os.close(self._signals.pop(port))
        self._broker.call(Verb.UNBIND, port)

    def close(self) -> None:
        """Close all descriptors; the ports end with the connection, which is the caller's to close. Idempotent."""
        self._epoll.close()
        for fd in (*self._waits.values(), *self._signals.values()):
            os.close(fd)
        for book in (self._waits, self._signals, self._ports):
            book.clear()

    def _take(self, reply: Reply, call: str, about: str) -> Port:
        if reply.errno:
            raise EventChannelError(call, reply.errno, about)
        port = Port(reply.words[0])
        wait, signal = reply.fds
        self._ports[wait] = port
        self._waits[port] = wait
        self._signals[port] = signal
        self._epoll.register(wait, _ARMED)
        return port
