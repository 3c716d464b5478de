"""A server of one image: qemu-nbd or nbdkit, started, watched and ended by us, one process for each disk.

It dies with us: the kernel sends it SIGTERM when we are gone, and qemu-nbd leaves by itself once its client has hung
up. Either way it puts its tables in order first. The lock on the image goes with it: our descriptor that holds the
lock is the server's, too, so whoever comes after us waits until the last write of the old server is done.
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
import subprocess
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from xenbusd.api import ResourceError
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
TAIL_MAX = 2048
"""Bytes of what it says on stderr that are kept: the last ones, where the reason is."""


Answer = TypeVar("Answer")


class RemoteServer:
    """Somebody else's server: a `Source` that only connects.

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
        """Nothing is ours."""

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
    """A server process of ours: a `Source` that starts a new one whenever a connection is asked for.

    Args:
        target: checked.
        socket_path: where the server listens; in a directory that is ours alone.
    """

    def __init__(self, target: Target, socket_path: str) -> None:
        self._target = target
        self._remote = RemoteServer(Address(path=socket_path))
        self._socket_path = socket_path
        self._lock = take_lock(target)
        self._process: ServerProcess | None = None

    async def open(self) -> tuple[socket.socket, Export]:
        """See `Source.open`: the server before is ended, in order where it still lives."""
        await self._end()
        with suppress(FileNotFoundError):
            os.unlink(self._socket_path)
        process = self._process = ServerProcess(
            command(self._target, self._socket_path), () if self._lock is None else (self._lock,)
        )
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
                        raise explained(self._target, process, error) from None
                await process.ended_within(EXIT_POLL_S)
                if process.status is not None:
                    raise complaint(self._target, process.program, process.status, process.tail)
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
            await process.stop()

    @property
    def pid(self) -> int | None:
        """The server's process, while there is one."""
        return None if self._process is None else self._process.pid


class ServerProcess:
    """One process. The event loop hears of its end through a pidfd, without a thread.

    Args:
        words: the command.
        keep_fds: descriptors that it gets from us.

    Raises:
        ResourceError: the program is not there.
    """

    def __init__(self, words: list[str], keep_fds: tuple[int, ...]) -> None:
        program, launcher = find(words[0]), find("setpriv")
        self.program = words[0]
        self.status: int | None = None
        """Its exit status, negative for a signal, once it has ended."""
        self._tail = bytearray()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._stderr, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writing, True)
        try:
            # The signal comes when the thread that started it ends: the event loop's, which is the process's first.
            self._process = subprocess.Popen(
                [launcher, "--pdeathsig", "TERM", program, *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=writing,
                env=environ(),
                pass_fds=keep_fds,
                start_new_session=True,
                umask=0o077,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            os.close(self._stderr)
            raise ResourceError(f"cannot run {program}: {error.strerror}", error.errno or errno.EIO) from error
        finally:
            os.close(writing)
        self.pid = self._process.pid
        self._loop.add_reader(self._stderr, self._listen)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def tail(self) -> str:
        """The last of what it said on stderr."""
        tail = self._tail
        if len(tail) == TAIL_MAX:
            tail = tail[tail.find(b"\n") + 1 :]  # the line that was cut says nothing
        return tail.decode(errors="backslashreplace").strip()

    def _listen(self) -> None:
        """Take what it says, so that it never waits for us."""
        with suppress(BlockingIOError):
            said = os.read(self._stderr, 65536)
            self._tail += said
            del self._tail[:-TAIL_MAX]
            if not said:
                self._loop.remove_reader(self._stderr)

    def _reap(self) -> None:
        self.status = self._process.wait()
        self._listen()
        self._loop.remove_reader(self._stderr)
        self._loop.remove_reader(self._pidfd)
        os.close(self._stderr)
        os.close(self._pidfd)
        self._ended.set()

    async def ended_within(self, seconds: float) -> bool:
        """Wait for its end, but not longer; return whether it has come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        return self.status is not None

    async def stop(self) -> None:
        """End it: SIGTERM, at which it puts the image in order; when it takes too long, SIGKILL. Idempotent."""
        deadline = time.monotonic() + STOP_S
        while self.status is None:
            late = time.monotonic() >= deadline
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL if late else signal.SIGTERM)
            if await self.ended_within(SIGTERM_RETRY_S) or time.monotonic() >= deadline + STOP_S:
                return


def find(program: str) -> str:
    """Where a program is.

    Raises:
        ResourceError: it is not installed.
    """
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        package = PACKAGES[program]
        raise ResourceError(f"{program} is not installed: as root, apt-get install {package}", errno.ENOPKG)
    return path


def environ() -> dict[str, str]:
    """Our own environment, without what systemd said to us alone, and with messages in English."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))}
    return ours | {"LC_ALL": "C"}


def take_lock(target: Target) -> int | None:
    """Open an image's file and lock it as a raw image is locked; None where there is no file, or it is shared.

    The server inherits the descriptor, and so the lock is held for as long as either of us lives.

    Raises:
        ResourceError: it is not there, is no file or block device, may not be opened so, or is in use.
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


def explained(target: Target, process: ServerProcess, error: ResourceError) -> ResourceError:
    """What went wrong at the connection, and, where the server has said something, that as well."""
    if not process.tail:
        return error
    return complaint(target, process.program, process.status or 0, f"{process.tail} ({error})")


def complaint(target: Target, program: str, status: int, words: str) -> ResourceError:
    """The error that a program's last words stand for."""
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
    why = words or (f"signal {-status}" if status < 0 else f"status {status}, and no word")
    return ResourceError(f"{program} cannot serve {target}: {why}", code)
