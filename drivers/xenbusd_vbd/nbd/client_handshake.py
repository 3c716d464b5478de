"""Connects to an NBD server: the fixed newstyle handshake, from the client's side.

Only simple replies are asked for: a disk needs nothing that structured ones add, and each costs more to parse.

Source: doc/proto.md of the NetworkBlockDevice/nbd repository, "Handshake", "Option types", "Option reply types".
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from contextlib import suppress
from typing import Any, NamedTuple

from xenbusd_vbd.nbd.address import Address
from xenbusd_vbd.nbd.errors import NbdError
from xenbusd_vbd.nbd.wire import (
    CLIENT_FLAGS,
    FIXED_NEWSTYLE,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE_REPLY,
    INFO_EXPORT_REPLY,
    INIT_PASSWD,
    NO_ZEROES,
    OPTION,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REQUEST_DATA_MAX,
    Info,
    Option,
    Reply,
    TransmissionFlags,
)

REPLIES_MAX = 64
"""Most replies to one option."""
REPLY_DATA_MAX = 65536
"""Most bytes in one of them: a server may send a name and a description of 4,096 bytes each."""
SIZE_MAX = (1 << 63) - 1
BLOCK_MAX = 1 << 16
"""Most bytes that a server may ask for as its block size ("Block size constraints")."""
SEND_BUFFER = 4 << 20
"""Bytes that the kernel may hold for a server on a UNIX socket; the default is some 200 KiB."""
SILENCE_S = 30
"""Seconds without a sign of life after which a connection over TCP is given up."""

_ERRORS = {
    1: "does not know the option",
    2: "refuses it by its policy",
    3: "finds the request invalid",
    4: "cannot do it on its platform",
    5: "wants TLS, which is not spoken here",
    6: "has no such export",
    7: "is shutting down",
    8: "insists on block sizes",
    9: "finds the request too big",
}
"""NBD_REP_ERR_*, without bit 31 ("Option reply types")."""


class Export(NamedTuple):
    """An export, as its server describes it."""

    size_bytes: int
    flags: TransmissionFlags
    minimum: int = 1
    """Bytes of which the server prefers every offset and length to be a multiple. It takes others as well."""
    preferred: int = 4096
    maximum: int = REQUEST_DATA_MAX
    """Bytes in one READ or WRITE."""


async def connect(address: Address) -> tuple[socket.socket, Export]:
    """Connect to a server, up to its first request.

    Raises:
        NbdError: there is no server, no such export, or the server breaks the protocol.
    Blocks: the coroutine, until the server answers; the caller sets a deadline.
    """
    sock = await _connect(address)
    try:
        export = await _negotiate(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock, export


async def inquire(address: Address) -> Export:
    """Ask for an export's present description, on a connection of its own.

    Raises:
        NbdError: as `connect`.
    Blocks: as `connect`.
    """
    sock = await _connect(address)
    with sock:
        return await _negotiate(sock, address, go=False)


async def _connect(address: Address) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        if address.path:
            return await _connect_to(socket.AF_UNIX, address.path)
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        for family, _, _, _, where in found[:-1]:
            with suppress(OSError):
                return await _connect_to(family, where)
        return await _connect_to(found[-1][0], found[-1][4])
    except OSError as error:
        code = (
            error.errno if error.errno and error.errno > 0 else errno.EHOSTUNREACH
        )  # getaddrinfo's codes are negative
        raise NbdError(f"no NBD server answers at {address}: {error.strerror or error}", code) from error


async def _connect_to(family: int, where: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _tune(sock, family)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def _tune(sock: socket.socket, family: int) -> None:
    if family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_S // 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_S // 6)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)


async def _negotiate(sock: socket.socket, address: Address, *, go: bool = True) -> Export:
    try:
        return await Negotiation(sock, address).export(go)
    except OSError as error:
        raise NbdError(
            f"the NBD server at {address} left during the handshake: {error.strerror or error}",
            error.errno or errno.ECONNRESET,
        ) from error


class Negotiation:
    """One handshake.

    Args:
        sock: connected, not blocking.
        address: names the export, and the server in errors.
    """

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._sock = sock
        self._address = address
        self._loop = asyncio.get_running_loop()

    async def export(self, go: bool) -> Export:
        """Return the server's description of the export; with `go`, requests may follow.

        Raises:
            NbdError: the server refuses, or breaks the protocol.
            OSError: the connection has ended.
        """
        passwd, magic, flags = GREETING.unpack(await self._receive(GREETING.size))
        if passwd != INIT_PASSWD or magic != IHAVEOPT or not flags & FIXED_NEWSTYLE:
            raise self._breach("it does not greet as an NBD server of the fixed newstyle does")
        await self._send(CLIENT_FLAGS.pack(flags & (FIXED_NEWSTYLE | NO_ZEROES)))
        # Block sizes are asked for by INFO, not by GO: a client that asks for them by GO promises to keep to them, and
        # a server with blocks of 4096 would no longer read, modify and write for a request of 512.
        sizes = await self._ask(Option.INFO, Info.BLOCK_SIZE)
        export = self._checked(sizes)
        return self._checked({**sizes, **await self._ask(Option.GO)}) if go else export

    async def _ask(self, option: Option, *infos: int) -> dict[int, bytes]:
        """Send INFO or GO, and return the server's answer: kind of information -> the whole of that reply."""
        name = self._address.export.encode()
        data = struct.pack(f">I{len(name)}sH{len(infos)}H", len(name), name, len(infos), *infos)
        await self._send(OPTION.pack(IHAVEOPT, option, len(data)) + data)
        replies: dict[int, bytes] = {}
        for _ in range(REPLIES_MAX):
            magic, about, kind, length = OPTION_REPLY.unpack(await self._receive(OPTION_REPLY.size))
            if magic != OPTION_REPLY_MAGIC or about != option or length > REPLY_DATA_MAX:
                raise self._breach(f"its reply to option {option} is malformed")
            data = await self._receive(length)
            if kind == Reply.ACK:
                return replies
            if kind & 1 << 31:
                raise self._refusal(kind, data)
            if kind == Reply.INFO and length >= 2:
                replies[int.from_bytes(data[:2], "big")] = data
        raise self._breach(f"it has over {REPLIES_MAX} replies to option {option}")

    def _checked(self, replies: dict[int, bytes]) -> Export:
        """Parse the server's answers.

        Raises:
            NbdError: they are impossible.
        """
        about = replies.get(Info.EXPORT, b"")
        if len(about) != INFO_EXPORT_REPLY.size:
            raise self._breach("it does not say how large the export is")
        _, size, flags = INFO_EXPORT_REPLY.unpack(about)
        if not flags & TransmissionFlags.HAS_FLAGS or size > SIZE_MAX:
            raise self._breach(f"size {size} with flags {flags:#x} cannot be")
        sizes = replies.get(Info.BLOCK_SIZE)
        if sizes is None:
            return Export(size, TransmissionFlags(flags))
        if len(sizes) != INFO_BLOCK_SIZE_REPLY.size:
            raise self._breach("its block sizes are not three numbers")
        _, minimum, preferred, maximum = INFO_BLOCK_SIZE_REPLY.unpack(sizes)
        if minimum & (minimum - 1) or not 1 <= minimum <= BLOCK_MAX or maximum < preferred or preferred < minimum:
            raise self._breach(f"block sizes of {minimum}, {preferred} and {maximum} cannot be")
        return Export(size, TransmissionFlags(flags), minimum, preferred, maximum)

    def _refusal(self, kind: int, data: bytes) -> NbdError:
        number = kind & ~(1 << 31)
        why = _ERRORS.get(number, f"answers with error {number}")
        words = data[:256].decode(errors="backslashreplace")
        sentence = f"the NBD server at {self._address} {why}" + (f": {words}" if words else "")
        return NbdError(sentence, errno.ENXIO if number == 6 else errno.EPROTO)

    def _breach(self, what: str) -> NbdError:
        return NbdError(f"the server at {self._address} breaks the NBD protocol: {what}", errno.EPROTO)

    async def _send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def _receive(self, length: int) -> bytes:
        """Receive exactly so many bytes: the bytes behind the handshake are not for this object."""
        data = b""
        while len(data) < length:
            more = await self._loop.sock_recv(self._sock, length - len(data))
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            data += more
        return data
