"""Parses what an NBD client sends, as it arrives: messages of the handshake, requests, the data of writes. Pure.

Bytes come into one buffer, except for the rest of a large WRITE, which is received straight into the memory that the
disk gets.
"""

from __future__ import annotations

from xenbusd_vbd.nbd.wire import REQUEST, REQUEST_MAGIC, WireError

BUFFER_SIZE = 128 * 1024
"""Bytes taken from the socket at once."""


class ClientInput:
    """The bytes of one client that were received and not yet used."""

    def __init__(self) -> None:
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._begin = 0
        self._end = 0
        self._data: memoryview | None = None
        """Data of a WRITE that is being received, or is whole and not yet taken."""
        self._data_end = 0
        self._skip = 0
        """Bytes still to be thrown away, of a WRITE that was refused."""

    # In.

    def space(self) -> memoryview:
        """The memory for the next bytes."""
        if self._data is not None and self._data_end < len(self._data):
            return self._data[self._data_end :]
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Note that `count` bytes were received into `space`."""
        if self._data is not None and self._data_end < len(self._data):
            self._data_end += count
        else:
            self._end += count

    # Out.

    def held(self) -> memoryview:
        """The bytes of the buffer that are not used; `use` says how many are now."""
        return self._view[self._begin : self._end]

    def use(self, count: int) -> None:
        """Mark `count` bytes as used."""
        self._begin += count

    def request(self) -> tuple[int, int, int, int, int, int] | None:
        """Return the next request's magic, flags, command, handle, offset and length; None if it is not whole.

        It stays in the buffer until `use(REQUEST.size)`.

        Raises:
            WireError: it is no request.
        """
        if self._end - self._begin < REQUEST.size:
            return None
        fields: tuple[int, int, int, int, int, int] = REQUEST.unpack_from(self._buffer, self._begin)
        if fields[0] != REQUEST_MAGIC:
            raise WireError(f"a request begins with {fields[0]:#x}, not with {REQUEST_MAGIC:#x}")
        return fields

    def data(self, length: int) -> memoryview | None:
        """Return the data of a WRITE, which comes next; None if it is not whole, and is collected until `has_data`."""
        data = memoryview(bytearray(length))
        here = min(length, self._end - self._begin)
        data[:here] = self._view[self._begin : self._begin + here]
        self._begin += here
        if here == length:
            return data
        self._begin = self._end = 0
        self._data, self._data_end = data, here
        return None

    def skip_data(self, length: int) -> None:
        """Throw away the data of a WRITE, which comes next."""
        self._skip = length

    def has_data(self) -> bool:
        """Whether the data of a WRITE that is collected or skipped was received to its end."""
        if self._skip:
            step = min(self._skip, self._end - self._begin)
            self._skip -= step
            self._begin += step
        return not self._skip and (self._data is None or self._data_end == len(self._data))

    def take_data(self) -> memoryview:
        """Return the data that is whole."""
        data, self._data = self._data, None
        assert data is not None
        return data

    def compact(self) -> None:
        """Move the unused bytes to the start of the buffer, so that there is space behind them."""
        if self._begin:
            held = self._end - self._begin
            self._view[:held] = self._view[self._begin : self._end]
            self._begin, self._end = 0, held

    def discard(self) -> None:
        """Throw away all unused bytes."""
        self._data = None
        self._begin = self._end = 0
