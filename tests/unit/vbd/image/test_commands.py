"""The NBD commands that a request becomes, and their parts."""

from __future__ import annotations

import pytest

from tests.doubles.nbd_bench import job
from xenbusd_vbd.image import commands
from xenbusd_vbd.image.commands import pending
from xenbusd_vbd.image.engine import Job
from xenbusd_vbd.nbd.wire import Command
from xenbusd_vbd.protocol import DISCARD, FLUSH_DISKCACHE, READ, WRITE, WRITE_BARRIER

DATA = b"w" * 1024


def nobody(jobs: list[Job]) -> None:
    """Take jobs that are done."""
    del jobs


def steps(op: int, data: bytes, sectors: int, *, flushes: bool) -> list[tuple[Command, int, int]]:
    """Each command with its offset and length, in order."""
    entry = pending(job(op, 4, data, sectors=sectors), nobody, flushes=flushes)
    found = []
    while entry is not None:
        found.append((entry.command, entry.offset, entry.length))
        if not entry.advance():
            break
    return found


@pytest.mark.parametrize(
    ("op", "data", "sectors", "expected", "without_flush"),
    [
        pytest.param(READ, DATA, 2, [Command.READ], [Command.READ], id="read"),
        pytest.param(WRITE, DATA, 2, [Command.WRITE], [Command.WRITE], id="write"),
        pytest.param(FLUSH_DISKCACHE, b"", 0, [Command.FLUSH], [], id="flush"),
        pytest.param(FLUSH_DISKCACHE, DATA, 2, [Command.FLUSH, Command.WRITE], [Command.WRITE], id="flush, then write"),
        pytest.param(
            WRITE_BARRIER, DATA, 2, [Command.FLUSH, Command.WRITE, Command.FLUSH], [Command.WRITE], id="barrier"
        ),
        pytest.param(WRITE_BARRIER, b"", 0, [Command.FLUSH], [], id="barrier without data"),
        pytest.param(DISCARD, b"", 6, [Command.TRIM], [Command.TRIM], id="discard"),
        pytest.param(DISCARD, b"", 0, [], [], id="discard of nothing"),
    ],
)
def test_what_each_becomes(
    op: int, data: bytes, sectors: int, expected: list[Command], without_flush: list[Command]
) -> None:
    """In order; without FLUSH for a server that has no cache."""
    assert [command for command, _, _ in steps(op, data, sectors, flushes=True)] == expected
    assert [command for command, _, _ in steps(op, data, sectors, flushes=False)] == without_flush


def test_a_long_discard_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One TRIM has 32 bits of length; the last part is what is left."""
    monkeypatch.setattr(commands, "TRIM_MAX", 2048)
    trim = Command.TRIM
    assert steps(DISCARD, b"", 9, flushes=True) == [(trim, 2048, 2048), (trim, 4096, 2048), (trim, 6144, 512)]
    assert steps(DISCARD, b"", 8, flushes=True) == [(trim, 2048, 2048), (trim, 4096, 2048)]


def test_a_write_has_its_data_with_it() -> None:
    """A private copy, as it is sent."""
    entry = pending(job(WRITE, 4, DATA, pieces=2), nobody, flushes=True)
    assert entry is not None
    assert entry.message is not None
    assert entry.message.endswith(DATA)
