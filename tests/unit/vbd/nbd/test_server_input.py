"""A client's bytes, however they are cut."""

from __future__ import annotations

import pytest

from xenbusd_vbd.nbd.server_input import BUFFER_SIZE, ClientInput
from xenbusd_vbd.nbd.wire import REQUEST, REQUEST_MAGIC, Command, WireError


def request(command: Command, handle: int, length: int) -> bytes:
    """One request, without its data."""
    return REQUEST.pack(REQUEST_MAGIC, 0, command, handle, 512, length)


def feed(source: ClientInput, data: bytes) -> None:
    """Give it bytes as a transport does."""
    while data:
        space = source.space()
        count = min(len(space), len(data))
        space[:count] = data[:count]
        source.received(count)
        data = data[count:]


def test_a_request_is_taken_once_it_is_whole() -> None:
    """Byte by byte; it stays until it is used."""
    source = ClientInput()
    message = request(Command.READ, 7, 1024)
    for byte in message[:-1]:
        feed(source, bytes([byte]))
        assert source.request() is None
    feed(source, message[-1:])
    assert source.request() == source.request() == (REQUEST_MAGIC, 0, Command.READ, 7, 512, 1024)
    source.use(REQUEST.size)
    assert source.request() is None


def test_what_is_no_request() -> None:
    """It is refused with what it begins with."""
    source = ClientInput()
    feed(source, bytes(REQUEST.size))
    with pytest.raises(WireError, match="begins with 0x0"):
        source.request()


def test_data_that_has_come_with_its_request() -> None:
    """It is given at once, and what follows stays."""
    source = ClientInput()
    feed(source, request(Command.WRITE, 1, 4) + b"data" + request(Command.FLUSH, 2, 0))
    source.use(REQUEST.size)
    assert source.data(4) == b"data"
    assert source.request() is not None
    assert source.has_data()


def test_data_that_comes_in_parts() -> None:
    """The rest goes straight into its own memory, which takes no byte of what follows."""
    source = ClientInput()
    feed(source, request(Command.WRITE, 1, 6) + b"da")
    source.use(REQUEST.size)
    assert source.data(6) is None
    assert len(source.space()) == 4
    feed(source, b"ta")
    assert not source.has_data()
    feed(source, b"!!" + request(Command.FLUSH, 2, 0))
    assert source.has_data()
    assert source.take_data() == b"data!!"
    assert source.request() is not None


def test_data_of_a_refused_write_is_skipped() -> None:
    """More than the buffer holds, and nothing of what follows."""
    source = ClientInput()
    source.skip_data(3 * BUFFER_SIZE)
    for _ in range(3):
        assert not source.has_data()
        feed(source, b"x" * BUFFER_SIZE)
        skipped = source.has_data()
        source.compact()
    assert skipped
    feed(source, request(Command.FLUSH, 2, 0))
    assert source.request() is not None


def test_space_comes_back() -> None:
    """What was used makes room; what is held stays whole."""
    source = ClientInput()
    message = request(Command.FLUSH, 3, 0)
    feed(source, b"y" * (BUFFER_SIZE - 4) + message[:4])
    assert len(source.space()) == 0
    source.use(BUFFER_SIZE - 4)
    source.compact()
    assert len(source.space()) == BUFFER_SIZE - 4
    feed(source, message[4:])
    assert source.held() == message


def test_discarding() -> None:
    """Half a write's data, and all that is held."""
    source = ClientInput()
    feed(source, b"da")
    assert source.data(6) is None
    source.discard()
    assert len(source.space()) == BUFFER_SIZE
    assert source.has_data()
