"""A TPM of the kernel's, where a socket stands in for the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from xenbusd.errors import ResourceError
from xenbusd_vtpm import vtpmx
from xenbusd_vtpm.protocol import TPM_1_2, TPM_2_0, TPM_HEAD, Version
from xenbusd_vtpm.vtpmx import FLAG_TPM2, NEW_DEV, NEW_DEV_ARGUMENT, SET_LOCALITY, ProxyTpm

COMMAND = bytes.fromhex("80010000000c0000017b0008")
ANSWER = bytes.fromhex("80010000000a00000000")


class Kernel:
    """Does what the proxy's device and its ioctl do; `end` is the kernel's end."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = str(folder / "vtpmx")
        Path(self.device).touch()
        self.end, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.setblocking(False)
        self.flags: list[int] = []
        self.error: OSError | None = None
        monkeypatch.setattr(vtpmx.fcntl, "ioctl", self.ioctl)

    def ioctl(self, fd: int, request: int, argument: bytes) -> bytes:
        """Make a TPM, number 7."""
        assert os.readlink(f"/proc/self/fd/{fd}") == self.device
        assert request == NEW_DEV
        if self.error is not None:
            raise self.error
        self.flags.append(NEW_DEV_ARGUMENT.unpack(argument)[0])
        return NEW_DEV_ARGUMENT.pack(self.flags[-1], 7, self._theirs.detach(), 10, 231)

    async def ask(self, command: bytes) -> bytes:
        """Send a command, as the kernel does, and take the answer."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.end, command)
        return await loop.sock_recv(self.end, 4096)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kernel with a proxy."""
    kernel = Kernel(tmp_path, monkeypatch)
    yield kernel
    kernel.end.close()
    kernel._theirs.close()


@pytest.mark.parametrize(("version", "flags"), [(TPM_2_0, FLAG_TPM2), (TPM_1_2, 0)], ids=["2.0", "1.2"])
async def test_commands_and_localities(kernel: Kernel, version: Version, flags: int) -> None:
    """Commands are answered in turn; the kernel's message about the locality is not passed on as a command."""
    done: list[tuple[bytes, int]] = []

    async def execute(command: bytes, locality: int) -> bytes:
        done.append((command, locality))
        return ANSWER

    proxy = ProxyTpm(execute, version, device=kernel.device)
    assert proxy.path == "/dev/tpm7"
    assert kernel.flags == [flags]
    assert await kernel.ask(COMMAND) == ANSWER
    locality = TPM_HEAD.pack(0x8001, 11, SET_LOCALITY) + b"\3"
    assert await kernel.ask(locality) == version.refusal(0)
    assert await kernel.ask(COMMAND) == ANSWER
    assert done == [(COMMAND, 0), (COMMAND, 3)]
    assert not proxy.ended
    await proxy.close()
    await proxy.close()


async def test_the_kernel_gives_it_up(kernel: Kernel) -> None:
    """When the kernel takes no more answers, the TPM has ended."""

    async def execute(command: bytes, locality: int) -> bytes:
        del command, locality
        kernel.end.close()
        return ANSWER

    proxy = ProxyTpm(execute, TPM_2_0, device=kernel.device)
    await asyncio.get_running_loop().sock_sendall(kernel.end, COMMAND)
    async with asyncio.timeout(20):
        await asyncio.wait([proxy._task])
    assert proxy.ended
    await proxy.close()


async def test_no_proxy(kernel: Kernel, tmp_path: Path) -> None:
    """If the module is missing, or refuses, the message says what to do."""

    async def execute(command: bytes, locality: int) -> bytes:
        raise AssertionError(command, locality)

    with pytest.raises(ResourceError, match="modprobe tpm_vtpm_proxy"):
        ProxyTpm(execute, TPM_2_0, device=str(tmp_path / "nonexistent"))
    kernel.error = OSError(errno.ENODEV, "No such device")
    with pytest.raises(ResourceError, match="makes no TPM: No such device"):
        ProxyTpm(execute, TPM_2_0, device=kernel.device)
