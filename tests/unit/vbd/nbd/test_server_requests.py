"""Requests under way: how they are counted and answered."""

from __future__ import annotations

import errno

import pytest

from tests.doubles.memory_disk import MemoryDisk
from xenbusd_vbd.nbd import server_requests
from xenbusd_vbd.nbd.server_replies import Replies
from xenbusd_vbd.nbd.server_requests import COUNTED, REQUESTS_MAX, Counters, RequestsUnderWay
from xenbusd_vbd.nbd.wire import Command

SIZE = 1 << 20


class Fixture:
    """Requests to a disk in memory that answers when the test says so."""

    def __init__(self) -> None:
        self.disk = MemoryDisk(SIZE, deferred=True)
        self.counters: Counters = dict.fromkeys(COUNTED, 0)
        self.replies = Replies(lambda: None)
        self.aborted = 0
        self.requests = RequestsUnderWay(self.disk, self.replies, self.counters, self.abort)

    def abort(self) -> None:
        """Count it."""
        self.aborted += 1


def test_requests_are_counted_until_they_are_answered() -> None:
    """Each once, whatever it asks for."""
    fixture = Fixture()
    fixture.requests.read(1, 0, 512)
    fixture.requests.write(2, 0, memoryview(bytes(1024)), False)
    fixture.requests.begin(Command.FLUSH, 3, 0, 0, False)
    fixture.requests.begin(Command.TRIM, 4, 0, 512, True)
    assert fixture.requests.count == 4
    fixture.disk.answer(last_first=True)
    assert fixture.requests.count == 1
    fixture.disk.answer()  # the flush behind the trim
    assert fixture.requests.count == 0
    assert (
        fixture.counters["nbd_bytes_read"],
        fixture.counters["nbd_bytes_written"],
        fixture.counters["nbd_errors"],
    ) == (512, 1024, 0)


def test_nothing_to_do_is_done_at_once() -> None:
    """A length of 0 does not reach the disk."""
    fixture = Fixture()
    fixture.requests.read(1, 0, 0)
    fixture.requests.write(2, 0, memoryview(b""), False)
    fixture.requests.begin(Command.TRIM, 3, 0, 0, False)
    assert (fixture.requests.count, fixture.disk.seen, fixture.replies.bytes) == (0, [], 3 * 16)


def test_there_is_room_for_so_many() -> None:
    """By their number."""
    fixture = Fixture()
    for handle in range(REQUESTS_MAX):
        assert fixture.requests.has_room(512)
        fixture.requests.read(handle, 0, 512)
    assert not fixture.requests.has_room(0)
    fixture.disk.answer(1)
    assert fixture.requests.has_room(512)


def test_there_is_room_for_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their bytes, to the last one."""
    monkeypatch.setattr(server_requests, "BYTES_MAX", 2048)
    fixture = Fixture()
    fixture.requests.read(1, 0, 1024)
    assert fixture.requests.has_room(1024)
    assert not fixture.requests.has_room(1025)
    fixture.requests.write(2, 0, memoryview(bytes(1024)), False)
    assert fixture.requests.has_room(0)
    assert not fixture.requests.has_room(1)
    fixture.disk.answer()
    assert fixture.requests.has_room(2048)


def test_an_error_counts_once() -> None:
    """From the disk, or before it; a failed trim is not flushed."""
    fixture = Fixture()
    fixture.disk.fail_with = errno.EIO
    fixture.requests.read(1, 0, 512)
    fixture.requests.begin(Command.TRIM, 2, 0, 512, True)
    fixture.disk.answer()
    assert fixture.requests.refused(3, errno.EINVAL, "no")
    assert (fixture.requests.count, fixture.counters["nbd_errors"], fixture.counters["nbd_bytes_read"]) == (0, 3, 0)
    assert fixture.disk.seen == [("read", 0, 512), ("trim", 0, 512)]


def test_an_answer_that_cannot_be() -> None:
    """A read of another length ends the connection, loudly."""
    fixture = Fixture()
    fixture.requests.read(1, 0, 512)
    fixture.disk.data = bytearray(10)
    with pytest.raises(ValueError, match="512 bytes with 10"):
        fixture.disk.answer()
    assert (fixture.aborted, fixture.requests.count) == (1, 0)
