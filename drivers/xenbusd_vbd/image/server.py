"""Image servers: qemu-nbd or nbdkit, started, watched and ended by us, one process for each disk.

The server dies with the daemon: the kernel sends it SIGTERM when the daemon is gone, and qemu-nbd exits by itself once
its client has hung up. Either way it puts its tables in order first. The server inherits the descriptor that holds the
lock on the image, so the next daemon waits until the last write of the old server is done.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from xenbusd.api import Child, ResourceError, child_environ
from xenbusd_vbd.image.formats import PACKAGES, Target, command
from xenbusd_vbd.image.params import has_file
from xenbusd_vbd.nbd.address import Address
from xenbusd_vbd.nbd.client_handshake import Export, connect, inquire
from xenbusd_vbd.nbd.errors import NbdError

START_S = 30.0
"""How long a server may take until it answers; under emulation it takes seconds."""
ANSWER_S = 10.0
"""How long a server that is not ours may take for a handshake."""
STOP_S = 8.0
"""How long it may take to end after SIGTERM; then it is killed. libxl waits 10 s for a device to close."""
SIGTERM_RETRY_S = 0.2
"""Between SIGTERMs: qemu-nbd forgets one that comes while it starts."""
EXIT_POLL_S = 0.01
"""Between attempts to connect to a server that starts, unless it exits."""


Answer = TypeVar("Answer")


class RemoteServer:
    """A server that is not ours: a `Source` that only connects.

    Args:
        address: where it is.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    async def open(self) -> tuple[socket.socket, Export]:
        """See `Source.open`."""
        return await self._answered(connect(self._address))

    async def inquire(self) -> Export:
        """See `Source.inquire`."""
        return await self._answered(inquire(self._address))

    async def close(self) -> None:
        """Do nothing: the server is not ours."""

    async def _answered(self, answer: Awaitable[Answer]) -> Answer:
        """Await an answer of the server, for up to ANSWER_S."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise ResourceError(
                f"the NBD server at {self._address} has not answered for {ANSWER_S:g} s", errno.ETIMEDOUT
            ) from None
        except NbdError as error:
            raise ResourceError(str(error), error.errno) from error


class ImageServer:
    """A server process of ours: a `Source` that starts a new one for each connection.

    Args:
        target: checked.
        socket_path: where the server listens; in a directory that is ours alone.
    """

    def __init__(self, target: Target, socket_path: str) -> None:
        self._target = target
        self._remote = RemoteServer(Address(path=socket_path))
        self._socket_path = socket_path
        self._lock = take_lock(target)
        self._process: Child | None = None

    async def open(self) -> tuple[socket.socket, Export]:
        """See `Source.open`: the previous server is ended, in order if it still runs."""
        await self._end()
        with suppress(FileNotFoundError):
            os.unlink(self._socket_path)
        words = command(self._target, self._socket_path)
        process = self._process = start(words, self._lock)
        deadline = time.monotonic() + START_S
        try:
            while True:
                try:
                    sock, export = await self._remote.open()
                    os.chmod(self._socket_path, 0o600)
                    return sock, export
                except ResourceError as error:
                    if error.errno not in (errno.ENOENT, errno.ECONNREFUSED) or time.monotonic() > deadline:
                        await process.ended_within(EXIT_POLL_S)
                        raise explained(self._target, words[0], process, error) from None
                if await process.ended_within(EXIT_POLL_S):
                    raise complaint(self._target, words[0], process.status or 0, process.last_lines)
        except BaseException:
            await self._end()
            raise

    async def inquire(self) -> Export:
        """See `Source.inquire`."""
        return await self._remote.inquire()

    async def close(self) -> None:
        """See `Source.close`: end the server, and let go of the image."""
        await self._end()
        with suppress(FileNotFoundError):
            os.unlink(self._socket_path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await stop(process)

    @property
    def pid(self) -> int | None:
        """The server's process, while there is one."""
        return None if self._process is None else self._process.pid


def start(words: list[str], lock: int | None) -> Child:
    """Start a server, which gets SIGTERM from the kernel when this process is gone.

    Args:
        words: the command.
        lock: a descriptor that it inherits.

    Raises:
        ResourceError: the program is not there.
    """
    # The signal comes when the thread that started the server ends: the event loop's, which is the process's first.
    argv = [find("setpriv"), "--pdeathsig", "TERM", find(words[0]), *words[1:]]
    try:
        return Child(argv, env=environ(), pass_fds=() if lock is None else (lock,), umask=0o077, keep_stdout=False)
    except OSError as error:
        raise ResourceError(f"cannot run {words[0]}: {error.strerror}", error.errno or errno.EIO) from error


async def stop(server: Child) -> None:
    """End a server: SIGTERM, at which it puts the image in order; SIGKILL when that takes over STOP_S. Idempotent."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        server.send_signal(signal.SIGTERM)
        if await server.ended_within(SIGTERM_RETRY_S):
            return
    await server.kill()


def find(program: str) -> str:
    """Return a program's path.

    Raises:
        ResourceError: it is not installed.
    """
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        package = PACKAGES[program]
        raise ResourceError(f"{program} is not installed: as root, apt-get install {package}", errno.ENOPKG)
    return path


def environ() -> dict[str, str]:
    """The environment of image programs: a child's, with messages in English."""
    return child_environ() | {"LC_ALL": "C"}


def take_lock(target: Target) -> int | None:
    """Open an image's file and lock it as a raw image is locked; None where there is no file, or it is shared.

    The server inherits the descriptor, so the lock is held for as long as the daemon or the server lives.

    Raises:
        ResourceError: it does not exist, is neither a file nor a block device, cannot be opened so, or is in use.
    """
    if not has_file(target.format):
        return None
    flags = (os.O_RDWR if target.writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(target.path, flags)
    except OSError as error:
        raise ResourceError(f"cannot open {target.path}: {error.strerror}", error.errno or errno.EIO) from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise ResourceError(f"{target.path} is neither a regular file nor a block device", errno.EINVAL)
        if not target.shared:
            fcntl.flock(fd, (fcntl.LOCK_EX if target.writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ResourceError(f"{target.path} is in use by another device or program", errno.EBUSY) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def explained(target: Target, program: str, server: Child, error: ResourceError) -> ResourceError:
    """The error of a failed connection, with the end of the server's output if there is any."""
    if not server.last_lines:
        return error
    return complaint(target, program, server.status or 0, f"{server.last_lines} ({error})")


def complaint(target: Target, program: str, status: int, words: str) -> ResourceError:
    """The error that stands for a program's exit status and the end of its output."""
    codes = {
        "lock": errno.EBUSY,
        "No such file": errno.ENOENT,
        "Permission denied": errno.EACCES,
        "not in ": errno.EINVAL,
        "not an ": errno.EINVAL,
        "nvalid": errno.EINVAL,
        "orrupt": errno.EUCLEAN,
    }
    code = next((number for sign, number in codes.items() if sign in words), errno.EIO)
    why = words or (f"signal {-status}" if status < 0 else f"status {status}, without a message")
    return ResourceError(f"{program} cannot serve {target}: {why}", code)
