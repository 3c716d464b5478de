"""The two transports to a store, and how each uses its file descriptor."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from tests.doubles.scripted_store import DEADLINE_S
from xenbusd.errors import StoreLost
from xenbusd.store.endpoint import Endpoint
from xenbusd.store.transport import DEVICE_PAYLOAD_MAX, DeviceTransport, StreamTransport, Transport, connect


@dataclass
class Heard:
    """Keeps the calls of a transport."""

    data: bytearray = field(default_factory=bytearray)
    refusals: list[tuple[bytes, int]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def received(self, data: bytes) -> None:
        """Keep what came."""
        self.data += data
        self.changed.set()

    def refused(self, packet: bytes, code: int) -> None:
        """Keep what was refused."""
        self.refusals.append((packet, code))
        self.changed.set()

    def ended(self, reason: str) -> None:
        """Keep the reason."""
        self.ends.append(reason)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Opened:
    """A transport with its other end."""

    transport: Transport
    theirs: socket.socket
    heard: Heard


async def opened(kind: str, how: int = socket.SOCK_STREAM) -> Opened:
    """Open a transport over a socketpair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, how)
    theirs.setblocking(False)
    heard = Heard()
    endpoint = Endpoint("a pair", lambda: ours.detach() if kind == "device" else ours)
    transport = await connect(endpoint, received=heard.received, refused=heard.refused, ended=heard.ended)
    assert isinstance(transport, DeviceTransport if kind == "device" else StreamTransport)
    return Opened(transport, theirs, heard)


@pytest.fixture(params=["socket", "device"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[Opened]:
    """One of the two."""
    pair = await opened(request.param)
    yield pair
    await pair.transport.close()
    pair.theirs.close()


@pytest.fixture
async def device() -> AsyncIterator[Opened]:
    """A device whose other end sees where each write ends."""
    pair = await opened("device", socket.SOCK_SEQPACKET)
    yield pair
    await pair.transport.close()
    pair.theirs.close()


async def test_bytes_go_both_ways(either: Opened) -> None:
    """As they are."""
    either.transport.send([b"one", b"two"])
    either.theirs.send(b"three")
    await either.heard.until(lambda: either.heard.data)
    assert (bytes(either.heard.data), either.theirs.recv(100)) == (b"three", b"onetwo")


async def test_much_more_than_fits_goes_out_in_order(either: Opened) -> None:
    """Where a write would block, the rest waits for the loop; the device is told no byte twice."""
    packets = [bytes([number % 256]) * 4096 for number in range(500)]
    either.transport.send(packets[:400])
    either.transport.send(packets[400:])
    got = bytearray()
    async with asyncio.timeout(DEADLINE_S):
        while len(got) < 500 * 4096:
            got += await asyncio.get_running_loop().sock_recv(either.theirs, 3000)
    assert bytes(got) == b"".join(packets)


async def test_the_other_ends_close_is_reported_once(either: Opened) -> None:
    """And what is sent afterwards goes nowhere, without an error."""
    either.theirs.close()
    await either.heard.until(lambda: either.heard.ends)
    either.transport.send([b"late"])
    await either.transport.close()
    assert len(either.heard.ends) == 1
    assert either.transport.gone


async def test_an_abort_is_reported_in_a_later_turn(either: Opened) -> None:
    """So that the caller of `abort` is not called from within it."""
    either.transport.abort()
    assert either.transport.gone
    assert either.heard.ends == []
    either.transport.send([b"late"])
    await either.heard.until(lambda: either.heard.ends)
    assert len(either.heard.ends) == 1


async def test_after_close_nothing_is_called(either: Opened) -> None:
    """Closing twice is as good as once."""
    either.theirs.send(b"unread")
    await either.transport.close()
    await either.transport.close()
    await asyncio.sleep(0)
    assert (either.heard.ends, bytes(either.heard.data)) == ([], b"")


async def test_a_close_after_an_abort_is_quiet_too(either: Opened) -> None:
    """The caller of `close` gets no call about the end."""
    either.transport.abort()
    await either.transport.close()
    await asyncio.sleep(0)
    assert either.heard.ends == []


async def test_the_device_gets_one_packet_in_each_write(device: Opened) -> None:
    """Of a second one in the same write it loses every byte (xenbus_file_write)."""
    device.transport.send([b"one", b"two"])
    device.transport.send([b"three"])
    assert [device.theirs.recv(100) for _ in range(3)] == [b"one", b"two", b"three"]


async def test_what_the_device_took_half_of_is_continued(device: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte twice, none left out, and the next packet begins at its beginning."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    device.transport.send([b"one two", b"three"])
    assert [device.theirs.recv(100) for _ in range(5)] == [b"one", b" tw", b"o", b"thr", b"ee"]


async def test_the_device_carries_fewer_bytes_than_a_socket(device: Opened) -> None:
    """Header and payload share 4096 bytes."""
    assert device.transport.payload_max == DEVICE_PAYLOAD_MAX == 4080


async def test_what_the_device_refuses_is_that_packets_answer(device: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packets behind it go out; what is sent from within the callback goes last."""
    write = os.write

    def refusing(fd: int, data: bytes) -> int:
        if data == b"bad":
            raise OSError(errno.ENOENT, "No such file or directory")
        return write(fd, data)

    monkeypatch.setattr(os, "write", refusing)
    device.transport._refused = lambda packet, code: (  # type: ignore[attr-defined]  # to send from within
        device.heard.refused(packet, code),
        device.transport.send([b"from within"]),
    )
    device.transport.send([b"one", b"bad", b"two"])
    assert device.heard.refusals == [(b"bad", errno.ENOENT)]
    assert [device.theirs.recv(100) for _ in range(3)] == [b"one", b"two", b"from within"]
    assert device.heard.ends == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODEV, errno.EPIPE])
async def test_a_device_that_has_gone_is_a_lost_connection(
    device: Opened, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """It is not this packet's fault."""

    def failing(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", failing)
    device.transport.send([b"one", b"two"])
    monkeypatch.undo()
    assert (len(device.heard.ends), device.heard.refusals) == (1, [])
    assert os.strerror(code) in device.heard.ends[0]


async def test_a_read_that_fails_is_a_lost_connection(device: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's reason."""

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    device.theirs.send(b"something")
    with monkeypatch.context() as patched:
        patched.setattr("xenbusd.store.transport.os.read", failing)
        await device.heard.until(lambda: device.heard.ends)
    assert "Input/output error" in device.heard.ends[0]


async def test_an_endpoint_that_nobody_answers_at_is_a_lost_store() -> None:
    """The endpoint's own error passes."""

    def nobody() -> int:
        raise StoreLost("no store answers at nowhere")

    heard = Heard()
    with pytest.raises(StoreLost, match="nowhere"):
        await connect(Endpoint("nowhere", nobody), received=heard.received, refused=heard.refused, ended=heard.ended)


async def test_any_stream_socket_will_do() -> None:
    """Not only a UNIX one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heard = Heard()
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with theirs:
            transport = await connect(
                Endpoint("tcp", lambda: ours), received=heard.received, refused=heard.refused, ended=heard.ended
            )
            theirs.sendall(b"hello")
            await heard.until(lambda: heard.data)
            assert bytes(heard.data) == b"hello"
            await transport.close()
