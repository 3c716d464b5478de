"""The address of a buffer."""

from __future__ import annotations

import ctypes

import pytest

from xenbusd.host.address import address_of


def test_address_is_where_the_bytes_are() -> None:
    """Bytes read at the address are the buffer's, writable or not."""
    for buffer in (b"read-only", bytearray(b"writable"), memoryview(b"a view of constant bytes")):
        assert ctypes.string_at(address_of(buffer), len(buffer)) == bytes(buffer)


def test_slices_lie_inside() -> None:
    """A slice's address is the whole's and its offset; ctypes agrees."""
    whole = bytearray(100)
    assert address_of(memoryview(whole)[10:]) == address_of(whole) + 10
    assert address_of(whole) == ctypes.addressof(ctypes.c_char.from_buffer(whole))


def test_buffer_is_let_go_of() -> None:
    """Asking for the address does not keep the buffer from being resized."""
    buffer = bytearray(4)
    address_of(buffer)
    buffer.extend(bytes(100))


def test_what_has_no_bytes_in_a_row_is_refused() -> None:
    """Every second byte, and what is no buffer at all."""
    with pytest.raises(BufferError):
        address_of(memoryview(b"abcd")[::2])
    with pytest.raises(TypeError):
        address_of(7)
