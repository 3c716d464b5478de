"""A UNIX socket to listen on: one whose owner has died is replaced, a living one never."""

from __future__ import annotations

import os
import socket
import stat

from xenbusd.errors import UsageError


def _clear(path: str) -> None:
    """Remove a socket at `path` that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise UsageError(f"{path} exists and is no socket: remove it, or choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:  # a full backlog and a socket of another type are signs of life, too
            raise UsageError(f"{path} is in use ({error.strerror}): stop its owner, or choose another path") from error
        else:
            raise UsageError(f"{path} is in use: stop the simulated host there, or choose another path")


def listen(path: str) -> socket.socket:
    """Listen for packets at `path`, for this user alone.

    Raises:
        UsageError: the path is too long, its directory is missing, or somebody else listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _clear(path)
        listener.bind(path)
        os.chmod(path, 0o600)  # before listen: until then nobody can connect
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:  # "AF_UNIX path too long" has no errno
        listener.close()
        raise UsageError(f"cannot listen at {path}: {error.strerror or error}") from error
    except UsageError:
        listener.close()
        raise
    return listener
