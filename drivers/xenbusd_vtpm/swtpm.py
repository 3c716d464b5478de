"""A running swtpm: a process with two sockets that nobody else can reach. The kernel kills it when the daemon dies.

TPM commands go over the data socket, commands to swtpm itself over the control socket. swtpm does one thing at a time:
it answers a command on either socket only after those that were sent before it.

After each command that changed something, swtpm is made to store its volatile state (PCRs, sessions, loaded keys). If
it dies, or is killed with the daemon, the next swtpm resumes from that state. Otherwise a crash of swtpm would reset
the guest's registers, and software in the guest could extend them anew, to forge how the guest was booted.

Source: swtpm 0.7.1, man swtpm(8), include/swtpm/tpm_ioctl.h, man swtpm_ioctls(3).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from contextlib import ExitStack

from xenbusd.api import Child, ResourceError
from xenbusd_vtpm.home import CIPHER, INSTALL, NOT_FOUND, Home, last_words
from xenbusd_vtpm.protocol import MESSAGE_MAX, TPM_2_0, TPM_HEAD, Version, is_whole, leaves_state_alone

CMD_INIT = 2
CMD_SET_LOCALITY = 5
CMD_CANCEL_TPM_CMD = 9
CMD_STORE_VOLATILE = 10
"""Control commands. Each is sent as a big-endian u32, some with an argument; the answer is a u32, 0 for success."""

SHUTDOWN = TPM_HEAD.pack(0x8001, 12, 0x145) + b"\0\0"
"""TPM2_Shutdown(TPM_SU_CLEAR): without it the next start counts as one after a power failure (TPM 2.0 Part 1, 12)."""

COMMAND_S = 300.0
"""The longest that a TPM command may take; one that makes a key takes minutes on a slow machine."""
CONTROL_S = 60.0
"""The longest that a control command may take."""
END_S = 5.0
"""The longest that swtpm may take to end in order; then it is killed."""
KILL_S = 0.2
"""The longest that it may take to end when nothing is left to be stored."""


class SwtpmLost(Exception):
    """swtpm has ended, or answers with nonsense. The command under way may have been carried out or not."""


class Swtpm:
    """A running swtpm. Make it by `start`; await `end` or `kill` once."""

    def __init__(self, child: Child, control: socket.socket, data: socket.socket, version: Version) -> None:
        self._child = child
        self._control_socket = control
        self._data = data
        self._version = version
        self._locality = 0
        self._owed = 0
        """Answers on the control socket to earlier cancels, still to be read."""
        self._loop = asyncio.get_running_loop()
        self._ended = False

    @classmethod
    async def start(cls, home: Home, version: Version, *, resume: bool) -> Swtpm:
        """Start the TPM of a home.

        Args:
            home: opened and prepared.
            version: the TPM's.
            resume: start from the volatile state that was stored last; otherwise as after power-on.

        Raises:
            ResourceError: swtpm is not installed, or it cannot use the TPM.
        """
        if not resume:
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
                    raise ResourceError(
                        f"swtpm cannot be run: {error.strerror}; {INSTALL}", error.errno or errno.EIO
                    ) from error
                raise
        for ours in (control, data):
            ours.setblocking(False)
        swtpm = cls(child, control, data, version)
        try:
            result = await swtpm._control(CMD_INIT, struct.pack(">I", 0))
        except BaseException as error:
            await swtpm.kill()
            if isinstance(error, SwtpmLost):
                missing = child.status == NOT_FOUND
                reason, number = (INSTALL, errno.ENOPKG) if missing else (last_words(child), errno.EIO)
                raise ResourceError(f"swtpm does not start: {reason}", number) from error
            raise
        if result != 0:
            await swtpm.kill()
            raise ResourceError(
                f"swtpm cannot use the TPM in {home.state} (result {result:#x}): {last_words(child)}", errno.EIO
            )
        return swtpm

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it takes commands: it runs, and its sockets are in step."""
        return not self._ended and not self._child.ended.is_set()

    async def execute(self, command: bytes, locality: int) -> bytes:
        """Carry out one command; only one at a time.

        Args:
            command: whole, as `is_whole` says.
            locality: 0 to 4.

        Returns:
            The whole response. The state that the command changed is stored by then.

        Raises:
            SwtpmLost: the command may have been carried out or not. After this, and after a cancellation of this call,
                `alive` is False.
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
            self._ended = True  # the sockets may hold answers that would be taken for those to later commands
            raise
        return response

    def cancel(self) -> None:
        """Ask swtpm to abort the command under way, which is answered in any case. swtpm 0.7 reads this request only
        after the command, when it has no effect."""
        if self.alive:
            try:
                self._control_socket.send(struct.pack(">I", CMD_CANCEL_TPM_CMD))
            except OSError:
                return
            self._owed += 1

    async def end(self) -> None:
        """Shut the TPM down in order if it still answers, and end swtpm. Idempotent."""
        try:
            if self.alive and self._version is TPM_2_0:
                async with asyncio.timeout(END_S):
                    await self._exchange(SHUTDOWN)
        except (SwtpmLost, TimeoutError):
            pass
        finally:
            await self._finish(END_S)

    async def kill(self) -> None:
        """End swtpm without shutting the TPM down: its volatile state is stored already. Idempotent."""
        await self._finish(KILL_S)

    async def _finish(self, timeout_s: float) -> None:
        self._ended = True
        self._data.close()  # at this swtpm ends, once the command under way is done
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
                        raise SwtpmLost(f"swtpm answered with {len(response)} bytes that are not a TPM response")
        except TimeoutError:
            raise SwtpmLost(f"a TPM command took more than {COMMAND_S:g} s") from None
        except OSError as error:
            raise SwtpmLost(f"swtpm has ended: {error.strerror}") from error
        return response

    async def _control(self, command: int, argument: bytes = b"") -> int:
        """Send a control command; return its result."""
        try:
            async with asyncio.timeout(CONTROL_S):
                await self._loop.sock_sendall(self._control_socket, struct.pack(">I", command) + argument)
                while self._owed:
                    self._owed -= 1
                    await self._result()
                return await self._result()
        except TimeoutError:
            raise SwtpmLost(f"swtpm has not answered on its control socket for {CONTROL_S:g} s") from None
        except OSError as error:
            raise SwtpmLost(f"swtpm has ended: {error.strerror}") from error

    async def _result(self) -> int:
        """Read one answer from the control socket."""
        answer = b""
        while len(answer) < 4:
            chunk = await self._loop.sock_recv(self._control_socket, 4 - len(answer))
            if not chunk:
                raise SwtpmLost("swtpm has closed its control socket")
            answer += chunk
        return int.from_bytes(answer, "big")
