"""TPMs for the tests: a pair on a simulated machine, Debian's tpm2-tools in its guest, and a frontend by hand."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.doubles.echo import GUEST
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.testing import Machine, Peer, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_vtpm.backend import VtpmBackend
from xenbusd_vtpm.frontend import VtpmFrontend
from xenbusd_vtpm.protocol import HEAD, LENGTH, STATE_AT, TPM_HEAD, PageState

UUID = "01234567-89ab-cdef-0123-456789abcdef"
OTHER_UUID = "fedcba98-7654-3210-fedc-ba9876543210"

TOOLS = ("swtpm", "swtpm_setup", "tpm2", "socat")

STARTUP = bytes.fromhex("80010000000c000001440000")
GET_RANDOM = bytes.fromhex("80010000000c0000017b0008")
RC_FAILURE = "00000101"


def lacking() -> str | None:
    """Say in one sentence which programs are missing; None if none is."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return None
    return f"there is no {missing[0]}: apt-get install swtpm swtpm-tools tpm2-tools socat"


def command(ordinal: int, body: bytes = b"", tag: int = 0x8001) -> bytes:
    """Return a whole command."""
    return TPM_HEAD.pack(tag, TPM_HEAD.size + len(body), ordinal) + body


def extend(pcr: int) -> bytes:
    """TPM2_PCR_Extend with a digest of 32 bytes of 0x11, SHA-256, the empty password."""
    password = bytes.fromhex("0000000940000009000000" + "0000")
    return command(0x182, pcr.to_bytes(4, "big") + password + bytes.fromhex("00000001000b") + b"\x11" * 32, 0x8002)


def pcr_read(pcr: int) -> bytes:
    """TPM2_PCR_Read of one register's SHA-256; the value is the response's last 32 bytes."""
    selection = (1 << pcr).to_bytes(3, "little")
    return command(0x17E, bytes.fromhex("00000001000b03") + selection)


def result(response: bytes) -> str:
    """A response's result, in hexadecimal."""
    return f"{TPM_HEAD.unpack_from(response)[2]:08x}"


@dataclass
class Tools:
    """tpm2-tools that use a TPM through a UNIX socket, in a folder of their own."""

    socket: Path
    folder: Path

    async def __call__(self, *words: str, fails: bool = False) -> str:
        """Run `tpm2 WORDS` and return its output. It must succeed, or if `fails`, fail."""
        self.folder.mkdir(exist_ok=True)
        environ = {**os.environ, "TPM2TOOLS_TCTI": f"cmd:socat - UNIX-CONNECT:{self.socket}"}
        process = await asyncio.create_subprocess_exec(
            "tpm2", *words, cwd=self.folder, env=environ,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(DEADLINE_S):
            said = (await process.communicate())[0].decode()
        assert (process.returncode != 0) == fails, f"tpm2 {' '.join(words)} ended with {process.returncode}: {said}"
        return said

    async def flush(self) -> None:
        """Unload all transient objects: there is no resource manager to do it."""
        await self("flushcontext", "--transient-object")


def socket_of(guest: Process, id: DeviceId) -> Path:
    """Where the agent offers the TPM."""
    return Path(guest.services.run_dir) / f"vtpm-{id.devid}.sock"


async def ask(guest: Process, id: DeviceId, *commands: bytes) -> list[bytes]:
    """Send raw commands to a TPM's socket, all at once; return the responses."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_unix_connection(str(socket_of(guest, id)))
        try:
            writer.write(b"".join(commands))
            responses = []
            for _ in commands:
                head = await reader.readexactly(TPM_HEAD.size)
                responses.append(head + await reader.readexactly(TPM_HEAD.unpack(head)[1] - TPM_HEAD.size))
            return responses
        finally:
            writer.close()
            await writer.wait_closed()


def options(machine: Machine, **more: Any) -> dict[str, Mapping[str, Any]]:
    """[drivers.vtpm] for a test: state in the machine's folder, and no TPM for this computer's kernel."""
    return {"vtpm": {"state_dir": str(machine.folder / "tpms"), "vtpmx": False, **more}}


async def serve(machine: Machine, **more: Any) -> Process:
    """Start the backends."""
    return await machine.start(DOM0, VtpmBackend, options=options(machine, **more))


async def agent(machine: Machine) -> Process:
    """Start the guest's frontends."""
    return await machine.start(GUEST, VtpmFrontend, options=options(machine))


async def attach(machine: Machine, uuid: str = UUID, devid: int = 0, **parameters: str) -> DeviceId:
    """Attach a TPM as xenbusctl does, without waiting until it is connected."""
    id = machine.id("vtpm", devid=devid)
    keys = VtpmBackend.directories(id.devid, {"uuid": uuid, **parameters})
    await machine.attach(id, keys.backend, keys.frontend)
    return id


@asynccontextmanager
async def pair(machine: Machine, **parameters: str) -> AsyncIterator[tuple[Process, Process, DeviceId]]:
    """Connect a pair, started up."""
    back, guest = await serve(machine), await agent(machine)
    id = await attach(machine, **parameters)
    await machine.connected(id)
    if parameters.get("version") != "1.2":
        assert [result(response) for response in await ask(guest, id, STARTUP)] == ["00000000"]
    yield back, guest, id
    if await machine.read(id.backend_path) is not None:
        await machine.detach(id)


class HandPage:
    """A frontend's page, driven by hand; `close` it."""

    def __init__(self, peer: Peer) -> None:
        host = peer.process.host
        self.peer = peer
        self._process = peer.process
        self.share = host.grants.share(peer.otherend_domid, 1)
        self.extra = host.grants.share(peer.otherend_domid, 1)
        self.port = host.events.alloc_unbound(peer.otherend_domid)
        self.page = self.share.view
        self._rang = asyncio.Event()
        self.events = 0
        peer.process.services.ports.attach(self.port, self._ring)

    def _ring(self) -> None:
        self.events += 1
        self._rang.set()
        self._process.host.events.unmask(self.port)

    @classmethod
    async def connect(cls, peer: Peer, *, before: bytes = b"") -> HandPage:
        """Offer a page at once, as Linux does; `before`: a command that it holds already."""
        page = cls(peer)
        if before:
            page.write(before)
        await peer.write(State.INITIALISED, **page.offer)
        await peer.until(State.CONNECTED)
        await peer.write(State.CONNECTED)
        return page

    @property
    def offer(self) -> dict[str, int]:
        """The keys that a frontend writes for it."""
        return {"ring-ref": self.share.grefs[0], "event-channel": self.port, "feature-protocol-v2": 1}

    def write(
        self, message: bytes, *, length: int | None = None, state: int = PageState.SUBMIT, locality: int = 0,
        extra: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """Write a command into the page; each field may lie."""
        at = HEAD.size + 4 * len(extra)
        first = 4096 - at
        self.page[at : at + len(message[:first])] = message[:first]
        rest = message[first:]
        self.extra.view[: len(rest)] = rest
        self.page[HEAD.size : at] = b"".join(LENGTH.pack(gref) for gref in extra)
        size = len(message) if length is None else length
        self.page[: HEAD.size] = HEAD.pack(size, state, locality, 0, len(extra))

    def notify(self) -> None:
        """Wake the backend."""
        self._process.host.events.notify(self.port)

    @property
    def state(self) -> int:
        """The page's state."""
        return self.page[STATE_AT]

    async def until(self, *states: PageState) -> PageState:
        """Wait until the backend has put the page into one of some states."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while self.state not in states:
                    self._rang.clear()
                    if self.state not in states:
                        await self._rang.wait()
        except TimeoutError:
            raise AssertionError(f"the page is at {self.state}, not {states}") from None
        return PageState(self.state)

    def response(self) -> bytes:
        """The message in the page."""
        length, _, _, _, extra = HEAD.unpack(bytes(self.page[: HEAD.size]))
        at = HEAD.size + 4 * extra
        first = bytes(self.page[at : at + length])
        return first + bytes(self.extra.view[: length - len(first)])

    async def ask(self, message: bytes, *, locality: int = 0, extra: tuple[int, ...] = ()) -> bytes:
        """Send a command and return the response, as an honest frontend does."""
        self.write(message, locality=locality, extra=extra)
        self.notify()
        await self.until(PageState.FINISH)
        return self.response()

    def close(self) -> None:
        """Close the port and take the pages back."""
        self._process.services.ports.detach(self.port)
        self._process.host.events.unbind(self.port)
        self.share.unshare()
        self.extra.unshare()
