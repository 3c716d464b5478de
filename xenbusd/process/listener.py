"""A UNIX socket to listen on, accessible to its owner alone. A socket file that nobody listens on any more is replaced;
one that is in use never is."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

from xenbusd.errors import UsageError


class Listener:
    """A bound socket, `sock`, for a server to listen on.

    Args:
        path: the socket's, at most 107 bytes.
        kind: SOCK_STREAM or SOCK_SEQPACKET.

    Raises:
        UsageError: the path cannot be used, is not a socket, or another process listens there.
    """

    def __init__(self, path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, kind)
        try:
            _clear(path)
            self.sock.bind(path)
            os.chmod(path, 0o600)  # before listen(): until then nobody can connect
            self.sock.setblocking(False)
            self._identity = _identity(path)
        except OSError as error:  # the error "AF_UNIX path too long" has no errno
            self.sock.close()
            raise UsageError(f"cannot listen at {path}: {error.strerror or error}") from error
        except UsageError:
            self.sock.close()
            raise

    def close(self) -> None:
        """Close the socket and remove its file, unless another file has taken its place. Idempotent."""
        self.sock.close()
        with suppress(OSError):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)


def answers(path: str) -> bool:
    """Whether a process listens on a UNIX socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _clear(path: str) -> None:
    """Remove a socket file that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UsageError(f"{path} exists and is no socket: remove it, or choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass  # a full backlog, or a socket of another kind: a process listens
    raise UsageError(f"{path} is in use: another process answers there; stop it, or choose another path")
