"""Guests of a simulated host for the tests: a process that holds one of everything, and a client of the store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from xenbusd.host.sim.client import SimHost
from xenbusd.ids import Gref, Port
from xenbusd.store.wire import HEADER, Message, Op
from xenbusd.store.wire import pack as pack_message

DYING = """
import sys
from xenbusd.host.sim.client import SimHost
host = SimHost(sys.argv[1], int(sys.argv[2]))
share = host.grants.share(0, 3)
share.view[0:5] = b"alive"
port = host.events.alloc_unbound(0)
store = host.store.open()
foreign = host.grants.map(0, [int(sys.argv[3])])
bound = host.events.bind_interdomain(0, int(sys.argv[4]))
print(share.grefs[0], port, flush=True)
sys.stdin.read()
"""
"""A guest that takes hold of one of everything, and waits for its end."""


class Store:
    """A blocking client of the store, for a socket that is connected to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(20)

    def receive(self) -> Message:
        """Take the next packet."""
        op, req_id, tx_id, length = HEADER.unpack(self._exactly(HEADER.size))
        return Message(op, req_id, tx_id, self._exactly(length))

    def ask(self, op: Op, *words: str) -> Message:
        """Send one request; return its answer."""
        self.sock.sendall(pack_message(op, 1, 0, b"".join(word.encode() + b"\0" for word in words)))
        return self.receive()

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.sock.recv(length - len(data))
            assert part, "the store has closed the connection"
            data += part
        return data


def open_store(host: SimHost) -> socket.socket:
    """Open a connection to the store as the domain that `host` is in."""
    opened = host.store.open()
    assert isinstance(opened, socket.socket)
    return opened


def start_guest(path: str, domid: int, gref: int, port: int) -> tuple[subprocess.Popen[str], Gref, Port]:
    """Start a `DYING` guest and wait until it holds pages, ports and mappings."""
    guest = subprocess.Popen(
        [sys.executable, "-c", DYING, path, str(domid), str(gref), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert guest.stdout is not None
    words = guest.stdout.readline().split()
    assert len(words) == 2, "the guest did not come up"
    return guest, Gref(int(words[0])), Port(int(words[1]))


def bury(guest: subprocess.Popen[str]) -> None:
    """Kill a guest without a chance to clean up."""
    guest.send_signal(signal.SIGKILL)
    guest.wait()
    for pipe in (guest.stdin, guest.stdout):
        if pipe is not None:
            pipe.close()
