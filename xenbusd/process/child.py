"""A child program: started by us, with its exit seen by the event loop, and the end of its output kept.

One class for hotplug scripts, modprobe, and the programs that drivers run: qemu-nbd, nbdkit, swtpm. It needs no thread
and no SIGCHLD handler, and so works on any event loop:

* The exit is seen through a pidfd. The process is reaped at that moment, so `status` and `ended` never lag behind.
* The output goes into a pipe that is emptied as it fills: a program that prints without end is never held up, and never
  costs more than `OUTPUT_MAX` bytes. The pipe is closed when the program ends, even if a process that it left behind
  still holds the other end: such a process must have an output of its own.
* The program leads a session, and so a process group, of its own. `kill` ends the whole group, including all programs
  that a shell script has started.

Source: pidfd_open(2), pidfd_send_signal(2), setsid(2), killpg(3).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

OUTPUT_MAX = 2048
"""Bytes of output that are kept: the last ones, where the reason for a failure is."""

KILLED_WITHIN_S = 5.0
"""How long `kill` waits for the end. A process that hangs in the kernel must not hang its parent, too."""

NOT_FOR_CHILDREN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
"""Variables by which systemd addresses this process alone; a child with LISTEN_FDS would take our descriptors for its
sockets. Source: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)."""


def child_environ() -> dict[str, str]:
    """Return this process's environment without `NOT_FOR_CHILDREN`."""
    return {key: value for key, value in os.environ.items() if key not in NOT_FOR_CHILDREN}


class Child:
    """A running program. Await `finish` or `kill` once, or wait until `ended` is set: nothing else frees it.

    Standard input is empty.

    Args:
        argv: the program, an absolute path or a name to be found in PATH, and its arguments.
        env: its environment; None: `child_environ()`.
        cwd: its working directory, entered before any change of user; None: ours.
        pass_fds: descriptors that it inherits, under the same numbers.
        umask: its umask; -1: ours.
        keep_stdout: keep standard output together with standard error; otherwise standard output is discarded.
        stdout: a descriptor that gets standard output instead, such as a memfd, for a program whose output is wanted
            whole; it stays the caller's.

    Raises:
        OSError: the program cannot be started; nothing is left open.
    Blocks: for the milliseconds of a vfork and an exec.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        umask: int = -1,
        keep_stdout: bool = True,
        stdout: int | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        elsewhere = subprocess.DEVNULL if stdout is None else stdout
        self._tail = bytearray()
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(writing, True)
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=writing if keep_stdout and stdout is None else elsewhere,
                stderr=writing,
                env=child_environ() if env is None else env,
                cwd=cwd,
                pass_fds=tuple(pass_fds),
                umask=umask,
                start_new_session=True,
            )
            try:
                self._pidfd = os.pidfd_open(self._process.pid)
            except BaseException:  # too many open files: without a pidfd its end would not be seen
                self._process.kill()
                self._process.wait()
                raise
        except BaseException:
            os.close(self._reading)
            raise
        finally:
            os.close(writing)
        self.ended = asyncio.Event()
        """Set once the program has ended."""
        self._loop.add_reader(self._reading, self._empty_pipe)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Its process id, which stays its own until `ended` is set."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None until it has ended."""
        return self._process.returncode

    @property
    def last_words(self) -> str:
        """The last `OUTPUT_MAX` bytes of its output, without white space around them; "" if it printed nothing."""
        return _decode(self._tail)

    @property
    def last_lines(self) -> str:
        """As `last_words`, without a first line whose beginning was dropped."""
        cut = self._tail.find(b"\n") + 1 if len(self._tail) == OUTPUT_MAX else 0
        return _decode(self._tail[cut:])

    async def ended_within(self, timeout_s: float) -> bool:
        """Wait for its end, but no longer than `timeout_s` seconds; return whether it has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.ended.wait()
        return self.ended.is_set()

    async def finish(self, timeout_s: float) -> bool:
        """Wait for its end; `kill` it after `timeout_s` seconds, or at once if this call is cancelled. Idempotent.

        Returns:
            Whether it ended by itself.
        """
        by_itself = False
        try:
            by_itself = await self.ended_within(timeout_s)
        finally:
            if not by_itself:
                await self.kill()
        return by_itself

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone, not to its process group. Does nothing once it has ended."""
        if not self.ended.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def kill(self) -> None:
        """Kill its whole process group, and wait for its end, at most `KILLED_WITHIN_S`. Idempotent.

        A process group whose leader has ended is left alone.
        """
        if not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self.ended_within(KILLED_WITHIN_S)

    def _reap(self) -> None:
        """Take the exit status and the last output, and close everything."""
        self._process.wait()  # the pidfd is readable: the process has ended, and this does not block
        self._empty_pipe()
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._reading)
        os.close(self._pidfd)
        os.close(self._reading)
        self.ended.set()

    def _empty_pipe(self) -> None:
        """Read the pipe's contents, at most a megabyte: a program that prints without end must not hold up the loop."""
        with suppress(BlockingIOError):
            for _ in range(16):
                chunk = os.read(self._reading, 65536)
                if not chunk:  # the program has closed its output
                    self._loop.remove_reader(self._reading)
                    return
                self._tail += chunk
                del self._tail[:-OUTPUT_MAX]


def _decode(output: bytearray) -> str:
    return output.decode("utf-8", "backslashreplace").strip()
