"""A TPM for this domain's kernel, through the kernel's TPM proxy: /dev/tpm0 and, for a TPM 2.0, /dev/tpmrm0, whose
commands we read from a descriptor and answer there.

Source: Linux, include/uapi/linux/vtpm_proxy.h, drivers/char/tpm/tpm_vtpm_proxy.c.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Awaitable, Callable

from xenbusd.api import ResourceError
from xenbusd_vtpm.protocol import MESSAGE_MAX, TPM_HEAD, Version

DEVICE = "/dev/vtpmx"

NEW_DEV = 0xC014A100
"""VTPM_PROXY_IOC_NEW_DEV: _IOWR(0xa1, 0x00, struct vtpm_proxy_new_dev)."""
NEW_DEV_ARGUMENT = struct.Struct("=IIIII")
"""flags; the kernel fills in: the TPM's number, our descriptor, major and minor number of /dev/tpmN."""
FLAG_TPM2 = 1

SET_LOCALITY = 0x20001000
"""TPM2_CC_SET_LOCALITY, TPM_ORD_SET_LOCALITY: a message from the kernel to the proxy's server, with a byte for the
locality after the head. Programs cannot send it."""

Execute = Callable[[bytes, int], Awaitable[bytes]]


def is_there() -> bool:
    """Whether the proxy's module is loaded in this kernel."""
    return os.path.exists(DEVICE)


class ProxyTpm:
    """A TPM of the kernel's, whose commands we answer.

    Args:
        execute: carries out a command, given its locality.
        version: the TPM's; the kernel makes /dev/tpmrm0 for 2.0 only.
        device: the proxy's device node.

    Raises:
        ResourceError: the kernel makes no TPM.
    """

    def __init__(self, execute: Execute, version: Version, *, device: str = DEVICE) -> None:
        self._execute = execute
        self._version = version
        self._locality = 0
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._fd, number = new_device(device, FLAG_TPM2 if version.name == "2.0" else 0)
        self.path = f"/dev/tpm{number}"
        self._loop.add_reader(self._fd, self._wake_up)
        self._task = asyncio.create_task(self._serve(), name=f"vtpmx {self.path}")

    def _wake_up(self) -> None:
        self._loop.remove_reader(self._fd)  # the kernel sends no other command before this one is answered
        self._wake.set()

    async def _serve(self) -> None:
        """Answer one command after the other, until the kernel discards the TPM."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                command = os.read(self._fd, MESSAGE_MAX)
                response = await self._respond(command)
                os.write(self._fd, response)
            except OSError as error:
                if error.errno == errno.EPIPE:  # the kernel refuses this TPM, or has discarded it
                    return
                # the kernel no longer waits for this answer; other commands will follow
            self._loop.add_reader(self._fd, self._wake_up)

    async def _respond(self, command: bytes) -> bytes:
        if len(command) > TPM_HEAD.size and TPM_HEAD.unpack_from(command)[2] == SET_LOCALITY:
            self._locality = command[TPM_HEAD.size]
            return self._version.refusal(0)
        return await self._execute(command, self._locality)

    @property
    def ended(self) -> bool:
        """Whether the kernel has discarded the TPM."""
        return self._task.done()

    async def close(self) -> None:
        """Take the TPM away from the kernel. Idempotent."""
        if self._fd >= 0:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with contextlib.suppress(ValueError, OSError):
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def new_device(device: str, flags: int) -> tuple[int, int]:
    """Have the kernel make a TPM.

    Returns:
        The descriptor that its commands are read from, and the N of its /dev/tpmN.

    Raises:
        ResourceError
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ResourceError(
            f"cannot open {device}: {error.strerror}; `modprobe tpm_vtpm_proxy`, as root", error.errno or errno.EIO
        ) from error
    try:
        answer = fcntl.ioctl(fd, NEW_DEV, NEW_DEV_ARGUMENT.pack(flags, 0, 0, 0, 0))
    except OSError as error:
        raise ResourceError(f"{device} makes no TPM: {error.strerror}", error.errno or errno.EIO) from error
    finally:
        os.close(fd)
    _, number, tpm_fd, _, _ = NEW_DEV_ARGUMENT.unpack(answer)
    os.set_inheritable(tpm_fd, False)
    return tpm_fd, number
