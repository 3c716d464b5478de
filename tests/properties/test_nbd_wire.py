"""NBD, whatever the client sends and however the bytes are cut."""

from __future__ import annotations

import asyncio
import itertools
import struct
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.memory_disk import MemoryDisk
from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.export import offer_of
from xenbusd_vbd.nbd.server_connection import NbdConnection
from xenbusd_vbd.nbd.server_handshake import Handshake, Stage
from xenbusd_vbd.nbd.server_requests import COUNTED
from xenbusd_vbd.nbd.wire import Rules, WireError

SIZE = 64 * 1024
OFFER = offer_of(MemoryDisk(SIZE), "vbd-51712")

OPTIONS = st.sampled_from([2, 3, 5, 6, 7, 8, 9, 10, 99])
OPTION_MESSAGES = st.builds(
    lambda number, data: wire.OPTION.pack(wire.IHAVEOPT, number, len(data)) + data,
    OPTIONS,
    st.one_of(st.just(b""), st.just(bytes(6)), st.binary(max_size=40)),
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes into pieces at the given places."""
    places = sorted({min(place, len(data)) for place in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def converse(handshake: Handshake, pieces: list[bytes]) -> tuple[bytes, bytes, Stage]:
    """Feed pieces as a connection does; return replies, what was left over, and where the handshake stands."""
    held, replies = b"", b""
    for piece in pieces:
        held += piece
        if handshake.stage is Stage.NEGOTIATING:
            used, reply = handshake.feed(held)
            held, replies = held[used:], replies + reply
    return replies, held, handshake.stage


@given(st.lists(OPTION_MESSAGES, max_size=6), st.lists(st.integers(0, 400), max_size=12))
def test_a_handshake_does_not_depend_on_the_cuts(options: list[bytes], cuts: list[int]) -> None:
    """The same options give the same replies, however they arrive."""
    script = struct.pack(">I", 3) + b"".join(options)
    assert converse(Handshake(OFFER), cut(script, cuts)) == converse(Handshake(OFFER), [script])


@given(st.binary(max_size=200), st.booleans())
def test_a_handshake_survives_anything(noise: bytes, begun: bool) -> None:
    """Noise ends in a WireError or in nothing; never in another exception, never in more bytes used than there are."""
    handshake = Handshake(OFFER)
    try:
        used, _reply = handshake.feed(struct.pack(">I", 3) + noise if begun else noise)
    except WireError:
        return
    assert 0 <= used <= len(noise) + 4


@given(
    st.integers(0, 8),
    st.integers(0, 7),
    st.one_of(st.integers(0, 2 * SIZE), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 2 * SIZE), st.integers(0, 2**32 - 1)),
)
def test_only_whole_sectors_inside_the_disk_are_let_through(command: int, flags: int, offset: int, length: int) -> None:
    """Whatever is not refused is a known command on whole sectors within the disk."""
    if Rules.of(OFFER, OFFER.flags).refusal(command, flags, offset, length) is None:
        assert command in (wire.Command.READ, wire.Command.WRITE, wire.Command.TRIM, wire.Command.FLUSH)
        assert offset % 512 == length % 512 == 0
        assert offset + length <= SIZE
        assert not flags & ~wire.FLAG_FUA


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    def is_closing(self) -> bool:
        """Say whether it was closed."""
        return self.closed

    def close(self) -> None:
        """Note it."""
        self.closed = True

    abort = close


REQUESTS = st.one_of(
    st.tuples(st.just(wire.Command.WRITE), st.integers(0, 160), st.integers(0, 40)),
    st.tuples(st.sampled_from([wire.Command.READ, wire.Command.TRIM]), st.integers(0, 160), st.integers(0, 40)),
    st.tuples(st.sampled_from([wire.Command.FLUSH, 6]), st.just(0), st.just(0)),
)


def replay(pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Send pieces through a connection past its handshake; return the replies and the disk as it is then."""

    async def session() -> tuple[bytes, bytes]:
        disk, pipe = MemoryDisk(SIZE), Pipe()
        connection = NbdConnection(
            disk,
            OFFER,
            dict.fromkeys(COUNTED, 0),
            lambda _connection: True,
            lambda _connection, _breach: None,
            handshake=False,
        )
        connection.connection_made(cast(asyncio.BaseTransport, pipe))
        for piece in pieces:
            while piece:
                room = connection.get_buffer(-1)
                here = min(len(room), len(piece))
                room[:here] = piece[:here]
                connection.buffer_updated(here)
                piece = piece[here:]
        assert not pipe.closed
        return pipe.written, bytes(disk.data)

    with asyncio.Runner() as runner:
        return runner.run(session())


@given(st.lists(REQUESTS, max_size=12), st.lists(st.integers(0, 250_000), max_size=12))
def test_requests_do_not_depend_on_the_cuts(requests: list[tuple[int, int, int]], cuts: list[int]) -> None:
    """Requests cut anywhere, data and headers alike, do what a model of the disk says, in order, nothing lost."""
    stream, replies, model = b"", b"", bytearray(SIZE)
    for handle, (command, sector, count) in enumerate(requests):
        offset, length = sector * 512, count * 512
        data = bytes([handle + 1]) * length if command == wire.Command.WRITE else b""
        stream += wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, handle, offset, length) + data
        fits = offset + length <= SIZE
        if command == 6 or not fits:
            replies += wire.simple_reply(handle, 28 if command == wire.Command.WRITE else 22)
            continue
        replies += wire.simple_reply(handle)
        if command == wire.Command.READ:
            replies += model[offset : offset + length]
        elif command != wire.Command.FLUSH:
            model[offset : offset + length] = data or bytes(length)
    assert replay(cut(stream, cuts)) == (replies, bytes(model))
