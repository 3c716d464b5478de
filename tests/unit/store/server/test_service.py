"""The embedded store on its sockets: connections, packets, slow and hostile peers, and the host's own calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from xenbusd.errors import StoreError, UsageError
from xenbusd.store.server import Quotas, StoreServer
from xenbusd.store.wire import HEADER, PAYLOAD_MAX, InvalidPath, InvalidPayload, InvalidPermission, Message, Op, pack

DEADLINE_S = 20
"""So that a store which says nothing fails its test, instead of stopping them all."""


class Peer:
    """The other end of one connection: sends any bytes, reads packets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def of(cls, server: StoreServer, domid: int) -> Peer:
        """Be `domid`, as a guest of the simulated host is."""
        ours, theirs = socket.socketpair()
        server.attach(theirs, domid)
        return cls(*await asyncio.open_unix_connection(sock=ours))

    @classmethod
    async def at(cls, path: str) -> Peer:
        """Connect as a tool in domain 0 does."""
        return cls(*await asyncio.open_unix_connection(path))

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self._writer.write(data)

    async def receive(self) -> Message:
        """Return the next packet."""
        async with asyncio.timeout(DEADLINE_S):
            op, req_id, tx_id, size = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return Message(op, req_id, tx_id, await self._reader.readexactly(size))

    async def ask(self, op: int, payload: bytes, req_id: int = 7, tx_id: int = 0) -> bytes:
        """Ask, and return the payload of the answer; events that come before it are dropped."""
        self.send(pack(op, req_id, tx_id, payload))
        while (answer := await self.receive()).op == Op.WATCH_EVENT:
            pass
        assert (answer.op, answer.req_id, answer.tx_id) in ((op, req_id, tx_id), (Op.ERROR, req_id, tx_id))
        return answer.payload

    async def ended(self) -> bytes:
        """Wait until the store has closed the connection; return what came before."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self._reader.read(-1)
            except ConnectionError:
                return b""

    async def close(self) -> None:
        """Go away."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[StoreServer]:
    """A store with a node that everybody may read."""
    server = StoreServer()
    server.write("/open", "v", ["r0"])
    yield server
    await server.close()


@pytest_asyncio.fixture
async def dom0(server: StoreServer) -> AsyncIterator[Peer]:
    """A connection of domain 0."""
    peer = await Peer.of(server, 0)
    yield peer
    await peer.close()


@pytest_asyncio.fixture
async def guest(server: StoreServer) -> AsyncIterator[Peer]:
    """A connection of domain 3, which has been introduced."""
    server.write("/local/domain/3", "", ["n3"])
    server.introduce(3)
    peer = await Peer.of(server, 3)
    yield peer
    await peer.close()


async def test_answers_carry_the_ids_of_their_requests(dom0: Peer) -> None:
    """In order, in one write or many, with any request id."""
    requests = [
        (Op.READ, 0xFFFFFFFF, b"/open\0"),
        (Op.WRITE, 0, b"/a\0b"),
        (Op.READ, 5, b"/a\0"),
        (Op.READ, 6, b"/none\0"),
    ]
    dom0.send(b"".join(pack(op, req_id, 0, payload) for op, req_id, payload in requests))
    assert [tuple(await dom0.receive()) for _ in requests] == [
        (Op.READ, 0xFFFFFFFF, 0, b"v"),
        (Op.WRITE, 0, 0, b"OK\0"),
        (Op.READ, 5, 0, b"b"),
        (Op.ERROR, 6, 0, b"ENOENT\0"),
    ]


async def test_a_packet_may_come_byte_by_byte(dom0: Peer) -> None:
    """And the next one behind its last byte."""
    data = pack(Op.READ, 1, 0, b"/open\0") + pack(Op.READ, 2, 0, b"/open\0")
    for at in range(len(data)):
        dom0.send(data[at : at + 1])
        await asyncio.sleep(0)
    assert [(await dom0.receive()).req_id for _ in range(2)] == [1, 2]


async def test_events_follow_the_answers(dom0: Peer) -> None:
    """WATCH is acknowledged before its first event; packets of events have no ids."""
    dom0.send(pack(Op.WATCH, 1, 0, b"/a\0t\0") + pack(Op.WRITE, 2, 0, b"/a/b\0"))
    assert [tuple(await dom0.receive()) for _ in range(4)] == [
        (Op.WATCH, 1, 0, b"OK\0"),
        (Op.WRITE, 2, 0, b"OK\0"),
        (Op.WATCH_EVENT, 0, 0, b"/a\0t\0"),
        (Op.WATCH_EVENT, 0, 0, b"/a/b\0t\0"),
    ]


async def test_one_connection_hears_of_the_other_s_writes(server: StoreServer, dom0: Peer, guest: Peer) -> None:
    """And of the host's own."""
    await guest.ask(Op.WATCH, b"/local/domain/3\0t\0")
    assert (await guest.receive()).payload == b"/local/domain/3\0t\0"
    await dom0.ask(Op.WRITE, b"/local/domain/3/x\0")
    assert (await guest.receive()).payload == b"/local/domain/3/x\0t\0"
    server.write("/local/domain/3/y", b"")
    assert (await guest.receive()).payload == b"/local/domain/3/y\0t\0"
    server.rm("/local/domain/3/y")
    assert (await guest.receive()).payload == b"/local/domain/3/y\0t\0"


async def test_a_connection_acts_as_its_domain(dom0: Peer, guest: Peer) -> None:
    """Permissions hold on the fast path of plain reads, too."""
    await dom0.ask(Op.WRITE, b"/secret\0s")
    assert await dom0.ask(Op.READ, b"/secret\0") == b"s"
    assert await guest.ask(Op.READ, b"/secret\0") == b"EACCES\0"
    assert await guest.ask(Op.READ, b"/open\0") == b"v"
    assert await dom0.ask(Op.READ, b"@releaseDomain\0") == b"EINVAL\0"
    assert await dom0.ask(Op.READ, b"/open") == b"EINVAL\0"
    assert await dom0.ask(Op.READ, b"/openx") == b"EINVAL\0"


@pytest.mark.parametrize("who", [0, 3])
async def test_a_payload_over_4096_bytes_ends_the_connection(server: StoreServer, who: int) -> None:
    """After the answers to what came before; the store and the others live on."""
    peer, other = await Peer.of(server, who), await Peer.of(server, who)
    peer.send(pack(Op.READ, 1, 0, b"/open\0") + HEADER.pack(Op.WRITE, 2, 0, PAYLOAD_MAX + 1) + b"x" * 100)
    assert await peer.ended() == pack(Op.READ, 1, 0, b"v")
    assert await other.ask(Op.READ, b"/open\0") == b"v"
    for each in (peer, other):
        await each.close()


async def test_garbage_ends_the_connection(server: StoreServer, dom0: Peer) -> None:
    """Whatever the bytes are, nobody else is harmed."""
    for seed in (b"\xff", b"GET / HTTP/1.1\r\n", b"\x80\x04"):
        peer = await Peer.of(server, 3)
        peer.send(seed * 1000)
        await peer.ended()
        await peer.close()
    assert await dom0.ask(Op.READ, b"/open\0") == b"v"


async def test_what_a_connection_has_ends_with_it(server: StoreServer, guest: Peer) -> None:
    """Watches and transactions of a closed connection give their room back."""
    domain = server._state.domains.get(3)
    first = await Peer.of(server, 3)
    await first.ask(Op.WATCH, b"/a\0t\0")
    await first.ask(Op.TRANSACTION_START, b"\0")
    assert (domain.watches, domain.transactions, len(server._state.callers(domain))) == (1, 1, 2)
    await first.close()
    async with asyncio.timeout(DEADLINE_S):
        while len(server._state.callers(domain)) > 1:
            await guest.ask(Op.READ, b"/open\0")
    assert (domain.watches, domain.transactions) == (0, 0)
    assert not server._state.watches


async def test_a_peer_that_does_not_read_is_not_worked_for(server: StoreServer) -> None:
    """A guest's requests wait, with at most 20 answers kept for it; when it reads, all are answered in order."""
    server.write("/big", b"x" * 2000, ["r0"])
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server.attach(theirs, 3)
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    count = 2000
    sending = loop.create_task(
        loop.sock_sendall(ours, b"".join(pack(Op.READ, number, 0, b"/big\0") for number in range(count)))
    )
    other = await Peer.of(server, 3)
    for _ in range(50):
        assert await other.ask(Op.READ, b"/open\0") == b"v"
    (stuck,) = [
        caller.drop.__self__  # type: ignore[attr-defined]
        for caller in server._state.callers(server._state.domains.get(3))
        if caller.drop.__self__._paused  # type: ignore[attr-defined]
    ]
    kept: int = stuck._transport.get_write_buffer_size()
    assert 0 < kept <= 20 * (HEADER.size + 2000)
    data = b""
    size = HEADER.size + 2000
    for number in range(count):
        while len(data) < size:
            async with asyncio.timeout(DEADLINE_S):
                data += await loop.sock_recv(ours, 65536)
        assert HEADER.unpack_from(data) == (Op.READ, number, 0, 2000)
        data = data[size:]
    await sending
    ours.close()
    await other.close()


async def test_a_guest_that_takes_no_events_loses_its_connection() -> None:
    """Different events fill its allowance; equal ones do not."""
    server = StoreServer(quotas=Quotas(unsent_event_bytes=4096))
    server.write("/open", "v", ["r0"])
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.sendall(pack(Op.WATCH, 1, 0, b"/open\0t\0"))
    server.attach(theirs, 3)
    writer = await Peer.of(server, 0)
    domain = server._state.domains.get(3)
    async with asyncio.timeout(DEADLINE_S):
        while not domain.watches:
            await writer.ask(Op.READ, b"/open\0")
        number = 0
        while server._state.callers(domain):
            number += 1
            await writer.ask(Op.WRITE, b"/open/%0200d\0" % number)
    assert domain.watches == 0
    assert await writer.ask(Op.READ, b"/open\0") == b"v"
    ours.close()
    await writer.close()
    await server.close()


async def test_release_ends_the_domain_s_connections(server: StoreServer, dom0: Peer, guest: Peer) -> None:
    """Its nodes go, @releaseDomain fires, and a later domain of the same number is served anew."""
    await dom0.ask(Op.WATCH, b"@releaseDomain\0gone\0")
    await dom0.receive()
    server.release(3)
    assert (await dom0.receive()).payload == b"@releaseDomain\0gone\0"
    assert await guest.ended() == b""
    assert not server.exists("/local/domain/3")
    server.release(3)
    later = await Peer.of(server, 3)
    assert await later.ask(Op.READ, b"/open\0") == b"v"
    await later.close()


async def test_a_domain_that_goes_while_it_is_attached_is_not_served(server: StoreServer) -> None:
    """The connection that was on its way ends."""
    ours, theirs = socket.socketpair()
    server.attach(theirs, 3)
    server.release(3)
    peer = Peer(*await asyncio.open_unix_connection(sock=ours))
    assert await peer.ended() == b""
    await peer.close()


async def test_introduce_fires_once(server: StoreServer, dom0: Peer) -> None:
    """Idempotent, and visible to IS_DOMAIN_INTRODUCED."""
    await dom0.ask(Op.WATCH, b"@introduceDomain\0new\0")
    await dom0.receive()
    server.introduce(5)
    server.introduce(5)
    assert (await dom0.receive()).payload == b"@introduceDomain\0new\0"
    dom0.send(pack(Op.IS_DOMAIN_INTRODUCED, 1, 0, b"5\0"))
    assert (await dom0.receive()).payload == b"T\0"


async def test_the_host_s_own_hand(server: StoreServer, dom0: Peer) -> None:
    """write, rm and exists act as domain 0; paths may be relative to its home."""
    server.write("/local/domain/3/device", "d", ["n0", "r3"])
    server.write("name", "Domain-0")
    assert await dom0.ask(Op.GET_PERMS, b"/local/domain/3/device\0") == b"n0\0r3\0"
    assert await dom0.ask(Op.READ, b"/local/domain/0/name\0") == b"Domain-0"
    assert server.exists("name")
    server.rm("/local")
    server.rm("/local")
    assert not server.exists("name")


async def test_the_host_s_own_mistakes_are_refused(server: StoreServer) -> None:
    """Before anything is changed, in words."""
    with pytest.raises(InvalidPath, match="no XenStore path"):
        server.write("/a b", "")
    with pytest.raises(InvalidPayload, match="5000 bytes"):
        server.write("/a", "x" * 5000)
    with pytest.raises(InvalidPermission, match="n r w b"):
        server.write("/a", "", ["x3"])
    with pytest.raises(StoreError, match="RM /"):
        server.rm("/")
    with pytest.raises(StoreError, match="RELEASE 0"):
        server.release(0)
    with pytest.raises(StoreError, match="INTRODUCE 40000"):
        server.introduce(40000)
    assert not server.exists("/a")


async def test_listen_serves_domain_0_on_a_socket_of_mode_0600(server: StoreServer, tmp_path: Path) -> None:
    """The file is there while the store is, and a transaction works through it."""
    path = tmp_path / "socket"
    await server.listen(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    peer = await Peer.at(str(path))
    tx_id = int((await peer.ask(Op.TRANSACTION_START, b"\0"))[:-1])
    assert await peer.ask(Op.WRITE, b"/a\0b", tx_id=tx_id) == b"OK\0"
    assert await peer.ask(Op.TRANSACTION_END, b"T\0", tx_id=tx_id) == b"OK\0"
    assert server.exists("/a")
    await server.close()
    await server.close()
    assert not path.exists()
    assert await peer.ended() == b""
    await peer.close()


async def test_listen_replaces_a_dead_socket_and_refuses_a_live_one(server: StoreServer, tmp_path: Path) -> None:
    """The message names the path and says what to do."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
    await server.listen(path)
    second = StoreServer()
    with pytest.raises(UsageError, match="is in use"):
        await second.listen(path)
    peer = await Peer.at(path)
    assert await peer.ask(Op.READ, b"/open\0") == b"v"
    await peer.close()
    await second.close()
    assert os.path.exists(path)


async def test_listen_refuses_what_is_no_socket(server: StoreServer, tmp_path: Path) -> None:
    """A file of somebody's is never removed; a folder that is not there is named."""
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(UsageError, match="is no socket"):
        await server.listen(str(file))
    assert file.read_text() == "precious"
    with pytest.raises(UsageError, match="cannot listen at"):
        await server.listen(str(tmp_path / "none" / "socket"))
    with pytest.raises(UsageError, match="cannot listen at"):
        await server.listen(str(tmp_path / ("long" * 40)))


async def test_close_leaves_a_socket_that_is_not_ours(server: StoreServer, tmp_path: Path) -> None:
    """Somebody may have put another in its place."""
    path = tmp_path / "socket"
    await server.listen(str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as another:
        another.bind(str(path))
        await server.close()
        assert path.exists()


async def test_a_closed_server_serves_nobody(server: StoreServer) -> None:
    """attach closes the socket at once."""
    await server.close()
    ours, theirs = socket.socketpair()
    server.attach(theirs, 3)
    assert ours.recv(1) == b""
    ours.close()
