"""The host interfaces of two processes, and requests that tests make on their descriptors directly."""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass

from xenbusd.host.interface import Host
from xenbusd.ids import Domid
from xenbusd.store.wire import HEADER


@dataclass
class Two:
    """The host interfaces of two processes on one machine: one shares and opens ports, the other maps and binds."""

    front: Host
    back: Host
    front_domid: Domid
    back_domid: Domid


def ask(connection: socket.socket | int, request: bytes) -> bytes:
    """Send one packet to a store, and return the payload of the answer."""
    fd = connection if isinstance(connection, int) else connection.fileno()
    os.write(fd, request)
    select.select([fd], [], [])
    answer = os.read(fd, HEADER.size)
    length = HEADER.unpack(answer)[3]
    payload = b""
    while len(payload) < length:
        select.select([fd], [], [])
        payload += os.read(fd, length - len(payload))
    return payload


def readable(fd: int) -> bool:
    """Whether a descriptor would wake the event loop."""
    return bool(select.select([fd], [], [], 0)[0])
