"""Translates a blkif request into NBD commands. Pure: no I/O here.

| blkif | NBD, one after the other |
|---|---|
| READ | READ |
| WRITE | WRITE |
| FLUSH_DISKCACHE | FLUSH, then WRITE if it has data |
| WRITE_BARRIER | FLUSH, WRITE, FLUSH; one FLUSH if it has no data |
| DISCARD | TRIM, as many times as its length needs |

A server that does not offer FLUSH has no cache: no FLUSH is sent to it, and a request that consists of nothing else is
done at once.
"""

from __future__ import annotations

from xenbusd_vbd.image.engine import Finished, Job
from xenbusd_vbd.nbd.client import write_message
from xenbusd_vbd.nbd.wire import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, Command
from xenbusd_vbd.protocol import DISCARD, FLUSH_DISKCACHE, READ, SECTOR, WRITE_BARRIER

TRIM_MAX = 1 << 30
"""Bytes in one TRIM: its length has 32 bits."""


class Pending:
    """A job under way, one NBD command at a time. Without a job, a flush of our own.

    Args:
        job: whose `status` the answers decide.
        finished: gets the job once its last command is answered.
        command: the first command.
        offset: of the request, in bytes.
        length: of the request, in bytes.
    """

    __slots__ = ("_left", "command", "finished", "job", "later", "length", "mark", "message", "offset")

    def __init__(self, job: Job | None, finished: Finished, command: Command, offset: int = 0, length: int = 0) -> None:
        self.job = job
        self.finished = finished
        self.command = command
        """The command to be sent, or to be answered."""
        self.offset = offset
        self.length = length if command != CMD_TRIM else min(length, TRIM_MAX)
        self.later: tuple[Command, ...] = ()
        """The commands after that one."""
        self.message: bytearray | None = None
        """A write, with its data."""
        self.mark = 0
        """For a flush that was sent: `UnflushedWrites.mark` of that moment."""
        self._left = length - self.length

    def advance(self) -> bool:
        """After a command was answered, turn to the next one; return whether there is one."""
        if self.command == CMD_TRIM:
            self.offset += self.length
            self.length = min(self._left, TRIM_MAX)
            self._left -= self.length
            return self.length > 0
        if not self.later:
            return False
        self.command, *later = self.later
        self.later = tuple(later)
        return True


def pending(job: Job, finished: Finished, *, flushes: bool) -> Pending | None:
    """Return the commands that do a job; None if there is nothing to do.

    Args:
        job: checked.
        finished: as `Pending`'s.
        flushes: whether the server offers FLUSH.
    """
    request = job.request
    op, offset, length = request.op, request.sector * SECTOR, request.sectors * SECTOR
    if op == READ:
        return Pending(job, finished, CMD_READ, offset, length)
    if op == DISCARD:
        return Pending(job, finished, CMD_TRIM, offset, length) if length else None
    commands: tuple[Command, ...] = (CMD_WRITE,) if length else ()
    if op in (FLUSH_DISKCACHE, WRITE_BARRIER) and flushes:
        commands = (CMD_FLUSH, *commands, *((CMD_FLUSH,) if op == WRITE_BARRIER and length else ()))
    if not commands:
        return None
    entry = Pending(job, finished, commands[0], offset, length)
    entry.later = commands[1:]
    if length:
        entry.message = write_message(offset, job.buffers)
    return entry
