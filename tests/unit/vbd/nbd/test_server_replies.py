"""Replies, and the writes that they become."""

from __future__ import annotations

import asyncio
import errno
from typing import cast

import pytest

from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.server_replies import LARGE, Replies


class Pipe:
    """A transport that keeps each write, and stops taking them after `room`."""

    def __init__(self, replies: Replies, room: int = 99) -> None:
        self.written: list[bytes] = []
        self._replies = replies
        self._room = room

    def write(self, data: bytes) -> None:
        """Keep it; tell of the end of the room as a transport does, from within."""
        self.written.append(data)
        self._room -= 1
        if not self._room:
            self._replies.writable = False

    @property
    def transport(self) -> asyncio.Transport:
        """As the replies take it."""
        return cast(asyncio.Transport, self)


def nothing() -> None:
    """Nobody writes after each reply."""


def test_small_replies_go_together() -> None:
    """A large one goes by itself, and the order stays."""
    added: list[int] = []
    replies = Replies(lambda: added.append(replies.bytes))
    pipe = Pipe(replies)
    for reply in (b"a", b"b", b"L" * LARGE, b"c"):
        replies.add(reply)
    assert added == [1, 2, LARGE + 2, LARGE + 3]
    replies.write(pipe.transport)
    assert pipe.written == [b"ab", b"L" * LARGE, b"c"]
    assert (replies.bytes, replies.is_empty()) == (0, True)


def test_a_client_that_takes_nothing() -> None:
    """What it does not take is kept, and written when it does."""
    replies = Replies(nothing)
    pipe = Pipe(replies, room=1)
    for _ in range(2):
        replies.add(b"L" * LARGE)
    replies.write(pipe.transport)
    assert (len(pipe.written), replies.is_empty(), replies.bytes) == (1, False, LARGE)
    replies.writable = True
    replies.write(pipe.transport)
    assert (len(pipe.written), replies.is_empty()) == (2, True)


def test_a_client_that_has_gone() -> None:
    """Nothing is kept for it."""
    replies = Replies(nothing)
    replies.add(b"a")
    replies.close()
    replies.add(b"b")
    assert replies.is_empty()


@pytest.mark.parametrize(
    ("structured", "length", "expected"),
    [
        (False, 4, wire.simple_reply(7) + b"data"),
        (True, 4, wire.data_chunk_head(7, 512, 4) + b"data"),
        (False, 0, wire.simple_reply(7)),
        (True, 0, wire.none_chunk(7)),
    ],
)
def test_data(structured: bool, length: int, expected: bytes) -> None:
    """Simple or structured, in pieces that are only lent."""
    replies = Replies(nothing)
    replies.structured = structured
    pipe = Pipe(replies)
    pieces = [memoryview(b"da"), memoryview(b"ta")] if length else []
    replies.data(7, 512, length, pieces)
    replies.write(pipe.transport)
    assert pipe.written == [expected]


def test_data_of_another_length() -> None:
    """The disk's bug is not passed on to the client."""
    replies = Replies(nothing)
    with pytest.raises(ValueError, match="a read of 512 bytes with 1"):
        replies.data(7, 0, 512, [memoryview(b"x")])
    assert replies.is_empty()


def test_failures() -> None:
    """An errno that NBD knows, and the sentence for a client that can read it."""
    replies = Replies(nothing)
    assert replies.failure(7, errno.EROFS, "no") == wire.simple_reply(7, errno.EPERM)
    replies.structured = True
    assert replies.failure(7, errno.EROFS, "no") == wire.error_chunk(7, errno.EPERM, "no")
