"""The handshake from the client's side, with servers that keep to the protocol and others."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from tests.doubles.nbd_bench import (
    GREETING,
    HANDSHAKE,
    answer,
    export_info,
    option_reply,
    scripted,
    sizes_info,
)
from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.address import Address
from xenbusd_vbd.nbd.client_handshake import REPLIES_MAX, connect, inquire
from xenbusd_vbd.nbd.errors import NbdError

INFO, GO = wire.Option.INFO, wire.Option.GO


async def test_connect(tmp_path: Path) -> None:
    """INFO asks for the block sizes, GO does not: so 512 bytes may be written even where a server likes 4096."""
    address = Address(path=str(tmp_path / "nbd"), export="disk")
    infos = answer(INFO, export_info(), sizes_info(4096, 65536, 1 << 25))
    async with scripted(address.path, GREETING, infos, answer(GO, export_info(1 << 30))) as options:
        sock, export = await connect(address)
        sock.close()
    assert (export.size_bytes, export.minimum, export.preferred, export.maximum) == (1 << 30, 4096, 65536, 1 << 25)
    name = b"\0\0\0\4disk"
    assert [option[16:] for option in options] == [name + b"\0\1\0\3", name + b"\0\0"]


async def test_inquire(tmp_path: Path) -> None:
    """`inquire` asks by INFO alone."""
    address = Address(path=str(tmp_path / "nbd"))
    async with scripted(address.path, GREETING, answer(INFO, export_info(4096))) as options:
        assert (await inquire(address)).size_bytes == 4096
    assert len(options) == 1


async def test_over_tcp() -> None:
    """A host's addresses are tried one after the other, until one answers."""

    ended = asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(HANDSHAKE))
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(converse, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    sock, export = await connect(Address(host="localhost", port=port))
    sock.close()
    assert export.size_bytes == 1 << 20
    async with asyncio.timeout(60):
        await ended.wait()
    server.close()


@pytest.mark.parametrize(
    ("greeting", "answers", "sentence"),
    [
        pytest.param(b"", (), "left during the handshake", id="nothing"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", (), "does not greet", id="another protocol"),
        pytest.param(GREETING[:16] + b"\0\0", (), "newstyle", id="not fixed"),
        pytest.param(GREETING, (), "left during", id="no answer"),
        pytest.param(GREETING, (b"x" * 20,), "is malformed", id="no reply magic"),
        pytest.param(GREETING, (answer(GO, export_info()),), "is malformed", id="about another option"),
        pytest.param(
            GREETING, (wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, INFO, 3, 1 << 31),), "malformed", id="long"
        ),
        pytest.param(GREETING, (answer(INFO),), "how large", id="no size"),
        pytest.param(GREETING, (answer(INFO, export_info(flags=0)),), "cannot be", id="no flags"),
        pytest.param(GREETING, (answer(INFO, export_info(1 << 63)),), "cannot be", id="too large"),
        pytest.param(GREETING, (answer(INFO, export_info()[:-1]),), "how large", id="short"),
        pytest.param(GREETING, (answer(INFO, export_info(), sizes_info(0, 1, 2)),), "block sizes", id="minimum 0"),
        pytest.param(GREETING, (answer(INFO, export_info(), sizes_info(3, 4, 8)),), "block sizes", id="minimum 3"),
        pytest.param(GREETING, (answer(INFO, export_info(), sizes_info(8, 4, 8)),), "block sizes", id="preferred"),
        pytest.param(GREETING, (answer(INFO, export_info(), sizes_info(1, 8, 4)),), "block sizes", id="maximum"),
        pytest.param(GREETING, (answer(INFO, export_info(), b"\0\3\0"),), "three numbers", id="short sizes"),
        pytest.param(GREETING, (answer(INFO, *[export_info()] * REPLIES_MAX),), "over", id="no end"),
        pytest.param(
            GREETING, (option_reply(INFO, 2**31 + 6, b"none here"),), "no such export: none here", id="unknown"
        ),
        pytest.param(GREETING, (option_reply(INFO, 2**31 + 5),), "wants TLS", id="TLS"),
        pytest.param(GREETING, (option_reply(INFO, 2**31 + 77),), "error 77", id="an error of tomorrow"),
        pytest.param(GREETING, (answer(INFO, export_info()), option_reply(GO, 2**31 + 2)), "policy", id="GO refused"),
    ],
)
async def test_what_cannot_be_is_refused(
    tmp_path: Path, greeting: bytes, answers: tuple[bytes, ...], sentence: str
) -> None:
    """Nothing that the server says is believed unchecked; the error says what was wrong and where."""
    address = Address(path=str(tmp_path / "nbd"))
    async with scripted(address.path, greeting, *answers), asyncio.timeout(60):
        with pytest.raises(NbdError, match=sentence) as caught:
            await connect(address)
    assert str(address) in str(caught.value)


async def test_nobody_there(tmp_path: Path) -> None:
    """The errno says whether there is no socket, or no server that listens at it."""
    with pytest.raises(NbdError, match="no NBD server answers") as caught:
        await connect(Address(path=str(tmp_path / "nbd")))
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(NbdError, match="no NBD server answers") as caught:
        await connect(Address(host="host.invalid"))
    assert caught.value.errno == errno.EHOSTUNREACH
