"""A running swtpm: one process, whose two sockets are ours alone and which ends with us.

TPM commands go over one socket, swtpm's own over the other. swtpm does one thing at a time: the answer to a command of
either socket comes after what was asked before. After each command that changed something its volatile state (PCRs,
sessions, loaded keys) is stored, so that a swtpm which dies, or is killed with us, is followed by one that goes on
where it was: otherwise a guest whose registers were reset behind its back could be made to lie about how it booted.

Source: swtpm 0.7.1, man swtpm(8), include/swtpm/tpm_ioctl.h, man swtpm_ioctls(3).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import ExitStack

from xenbusd.api import Child
from xenbusd_vtpm.home import CIPHER, INSTALL, NOT_FOUND, Home, TpmError, last_words
from xenbusd_vtpm.protocol import MESSAGE_MAX, TPM_2_0, TPM_HEAD, Version, is_whole, leaves_state_alone

CMD_INIT = 2
CMD_SET_LOCALITY = 5
CMD_CANCEL_TPM_CMD = 9
CMD_STORE_VOLATILE = 10
"""Each is sent as a big-endian u32, with an argument or none; the answer is a u32, 0 for success."""

SHUTDOWN = TPM_HEAD.pack(0x8001, 12, 0x145) + b"\0\0"
"""TPM2_Shutdown(TPM_SU_CLEAR): without it the next start counts as one after a power failure (TPM 2.0 Part 1, 12)."""

COMMAND_S = 300.0
"""The longest that a command may take; some make keys, on slow machines for minutes."""
CONTROL_S = 60.0
END_S = 5.0
KILL_S = 0.2


class SwtpmLost(Exception):
    """The process has ended, or does not answer as a TPM does. What was under way may have been done or not."""


class Swtpm:
    """A running swtpm. Made by `start`; `end` must be awaited."""

    def __init__(self, child: Child, control: socket.socket, data: socket.socket, version: Version) -> None:
        self._child = child
        self._control_socket = control
        self._data = data
        self._version = version
        self._locality = 0
        self._owed = 0
        """Answers to cancels that have not been taken."""
        self._loop = asyncio.get_running_loop()
        self._ended = False

    @classmethod
    async def start(cls, home: Home, version: Version, *, go_on: bool) -> Swtpm:
        """Start the TPM of an opened home.

        Args:
            home: opened, and prepared.
            version: what it is.
            go_on: with the volatile state that was stored; otherwise as after power-on.

        Raises:
            TpmError: there is no swtpm, or it refuses.
        """
        if not go_on:
            home.forget_volatile()
        with ExitStack() as stack:
            control, their_control = socket.socketpair()
            data, their_data = socket.socketpair()
            for end in (their_control, their_data):
                stack.enter_context(end)
            fds = [their_control.fileno(), their_data.fileno(), home.lock_fd]
            argv = [*home.wrapper, "swtpm", "socket", *(["--tpm2"] if version is TPM_2_0 else [])]
            argv += ["--tpmstate", "dir=.,mode=0600", "--terminate", "--fd", str(their_data.fileno())]
            argv += ["--ctrl", f"type=unixio,clientfd={their_control.fileno()}"]
            try:
                if (key := stack.enter_context(home.key())) is not None:
                    argv += ["--key", f"fd={key},mode={CIPHER}"]
                    fds.append(key)
                child = Child(argv, cwd=home.state, pass_fds=fds)
            except BaseException as error:
                control.close()
                data.close()
                if isinstance(error, OSError):
                    raise TpmError(f"swtpm cannot be run: {error.strerror}; {INSTALL}") from error
                raise
        for ours in (control, data):
            ours.setblocking(False)
        swtpm = cls(child, control, data, version)
        try:
            result = await swtpm._control(CMD_INIT, struct.pack(">I", 0))
        except BaseException as error:
            await swtpm.kill()
            if isinstance(error, SwtpmLost):
                said = INSTALL if child.status == NOT_FOUND else last_words(child)
                raise TpmError(f"swtpm does not start: {said}") from error
            raise
        if result != 0:
            await swtpm.kill()
            raise TpmError(f"swtpm cannot use the TPM in {home.state} (result {result:#x}): {last_words(child)}")
        return swtpm

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked anything: its process lives, and we have not ended it."""
        return not self._ended and not self._child.ended.is_set()

    async def execute(self, command: bytes, locality: int) -> bytes:
        """Have one command done. Only one at a time.

        Args:
            command: whole, as `is_whole` says.
            locality: 0 to 4.

        Returns:
            The response, whole; what the command changed is stored.

        Raises:
            SwtpmLost: nobody knows whether it was done. Also if this call is cancelled swtpm is of no more use.
        """
        try:
            if locality != self._locality:
                if await self._control(CMD_SET_LOCALITY, bytes([locality])) != 0:
                    return self._version.refusal(self._version.bad_locality)
                self._locality = locality
            response = await self._exchange(command)
            if not leaves_state_alone(command):
                await self._control(CMD_STORE_VOLATILE)
        except BaseException:
            self._ended = True  # the two sockets may hold answers that nobody waits for
            raise
        return response

    def cancel(self) -> None:
        """Ask for an early end of the command under way; it has an answer all the same. swtpm 0.7 reads this only after
        the command, where it has no effect."""
        if self.alive:
            try:
                self._control_socket.send(struct.pack(">I", CMD_CANCEL_TPM_CMD))
            except OSError:
                return
            self._owed += 1

    async def end(self) -> None:
        """Switch it off: in order if it still answers. Idempotent."""
        try:
            if self.alive and self._version is TPM_2_0:
                async with asyncio.timeout(END_S):
                    await self._exchange(SHUTDOWN)
        except (SwtpmLost, TimeoutError):
            pass
        finally:
            await self._finish(END_S)

    async def kill(self) -> None:
        """Have it end as it is: what it must not forget is stored. Idempotent."""
        await self._finish(KILL_S)

    async def _finish(self, timeout_s: float) -> None:
        self._ended = True
        self._data.close()  # which ends it, once it has done what it is at
        self._control_socket.close()
        await self._child.finish(timeout_s)

    async def _exchange(self, command: bytes) -> bytes:
        response = b""
        try:
            async with asyncio.timeout(COMMAND_S):
                await self._loop.sock_sendall(self._data, command)
                while not is_whole(response):
                    chunk = await self._loop.sock_recv(self._data, MESSAGE_MAX + 1)
                    response += chunk
                    if not chunk or len(response) > MESSAGE_MAX:
                        raise SwtpmLost(f"it answered with {len(response)} bytes that are no response")
        except TimeoutError:
            raise SwtpmLost(f"a command took more than {COMMAND_S:g} s") from None
        except OSError as error:
            raise SwtpmLost(f"it ended: {error.strerror}") from error
        return response

    async def _control(self, command: int, argument: bytes = b"") -> int:
        """Give a command of swtpm's own; return its result."""
        try:
            async with asyncio.timeout(CONTROL_S):
                await self._loop.sock_sendall(self._control_socket, struct.pack(">I", command) + argument)
                while self._owed:
                    self._owed -= 1
                    await self._word()
                return await self._word()
        except TimeoutError:
            raise SwtpmLost(f"its control channel was silent for {CONTROL_S:g} s") from None
        except OSError as error:
            raise SwtpmLost(f"it ended: {error.strerror}") from error

    async def _word(self) -> int:
        answer = b""
        while len(answer) < 4:
            chunk = await self._loop.sock_recv(self._control_socket, 4 - len(answer))
            if not chunk:
                raise SwtpmLost("it hung up")
            answer += chunk
        return int.from_bytes(answer, "big")
