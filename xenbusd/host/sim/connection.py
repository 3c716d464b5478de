"""The client's end of a connection to the broker: one request, one reply."""

from __future__ import annotations

import errno
import os
import socket
from array import array
from threading import Lock
from typing import NamedTuple

from xenbusd.errors import UsageError
from xenbusd.host.sim.protocol import CENSUS_BYTES_MAX, DESCRIPTORS_MAX, REPLY_BYTES_MAX, Verb, pack, parse_reply

PATIENCE_S = 30.0
"""How long to wait for a reply: a broker answers within microseconds, unless it has been stopped in a debugger."""

_ANCILLARY_ROOM = socket.CMSG_LEN(DESCRIPTORS_MAX * array("i").itemsize)


class Reply(NamedTuple):
    """A reply of the broker. The receiver owns the descriptors."""

    errno: int
    words: tuple[int, ...] = ()
    fds: tuple[int, ...] = ()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            os.close(fd)


class BrokerConnection:
    """A connection that several threads may use.

    Args:
        path: the broker's socket.

    Raises:
        UsageError: no broker answers there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = Lock()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(PATIENCE_S)
        try:
            self._sock.connect(path)
        except OSError as error:  # "AF_UNIX path too long" has no errno
            self._sock.close()
            raise UsageError(
                f"no simulated host answers at {path} ({error.strerror or error}): "
                f"start one with `xenbusd sim --socket {path}`"
            ) from error

    def call(self, verb: Verb, *words: int) -> Reply:
        """Ask, and wait for the answer.

        Returns:
            The reply; its errno is EINVAL for a word that is no u32, and ESHUTDOWN once the broker or this
            connection has ended. Never raises, so that each caller can name the operation that failed.
        Blocks: for a round trip to the broker.
        """
        try:
            request = pack((verb, *words))
        except ValueError:
            return Reply(errno.EINVAL)
        with self._lock:
            try:
                self._sock.send(request)
                data, fds = self._receive(CENSUS_BYTES_MAX if verb is Verb.CENSUS else REPLY_BYTES_MAX)
                code, results = parse_reply(data)
            except (OSError, ValueError):
                self._sock.close()
                return Reply(errno.ESHUTDOWN)
            except BaseException:
                self._sock.close()  # a late reply would be taken for that to the next request
                raise
        return Reply(code, results, tuple(fds))

    def _receive(self, room: int) -> tuple[bytes, array[int]]:
        # Not socket.recv_fds, which drops its flags in 3.11: the descriptors would leak into children.
        data, ancillary, _, _ = self._sock.recvmsg(room, _ANCILLARY_ROOM, socket.MSG_CMSG_CLOEXEC)
        fds = array("i")
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        return data, fds

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._sock.close()

    def part(self) -> None:
        """End the connection, and wait until the broker has closed its end, too.

        For a broker in a thread of this very process, where that end is one of our own descriptors.

        Blocks: for a round trip to the broker.
        """
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while self._sock.recv(REPLY_BYTES_MAX):
                pass
        except OSError:
            pass  # the broker has gone already
        self._sock.close()
