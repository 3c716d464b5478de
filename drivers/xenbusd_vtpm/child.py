"""A program that runs for us: its end is seen by the event loop, and the end of what it prints is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

OUTPUT_MAX = 2048
"""Bytes of output that are kept: the last ones, where the reason is."""

KILLED_WITHIN_S = 5.0


class Child:
    """A running program; `finish` must be awaited once.

    Args:
        argv: program and arguments.
        cwd: its folder, which need not be reachable by its path for the user that the program becomes.
        pass_fds: descriptors that it inherits, under their numbers.

    Raises:
        OSError: it cannot be started.
    Blocks: for the milliseconds of a vfork and an exec.
    """

    def __init__(self, argv: Sequence[str], *, cwd: str, pass_fds: Sequence[int] = ()) -> None:
        self._output, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writing, True)
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                cwd=cwd,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(writing)
        self._tail = bytearray()
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(self._process.pid)
        self.ended = asyncio.Event()
        """Set when it has ended."""
        self._loop.add_reader(self._pidfd, self._reap)
        self._loop.add_reader(self._output, self._drain)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def said(self) -> str:
        """The end of what it printed, on one line."""
        self._drain()
        return "; ".join(self._tail.decode("utf-8", "backslashreplace").split("\n")).strip("; ") or "no output"

    async def finish(self, timeout_s: float) -> None:
        """Wait for its end, and kill it, with all its children, if that does not come in time. Idempotent."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.ended.wait()
        finally:
            if not self.ended.is_set():
                os.killpg(self._process.pid, signal.SIGKILL)  # with what it has started itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(KILLED_WITHIN_S)  # as good as dead: too short a wait for a thread
                self._reap()
            if self._output >= 0:
                self._drain()
                self._loop.remove_reader(self._output)
                os.close(self._output)
                self._output = -1

    def _reap(self) -> None:
        if self._process.poll() is not None and not self.ended.is_set():
            self.ended.set()
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)

    def _drain(self) -> None:
        """Take what it has printed, so that it never waits for us."""
        while self._output >= 0:
            try:
                chunk = os.read(self._output, 4096)
            except OSError:
                return
            if not chunk:
                self._loop.remove_reader(self._output)
                return
            self._tail += chunk
            del self._tail[:-OUTPUT_MAX]
