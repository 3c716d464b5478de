"""Carries out jobs through an NBD server, and outlives it: when the connection ends, another one is made, unanswered
requests are sent again, and the guest notices no more than a pause.

Reads, writes of the same data and flushes may be repeated, in any number. Writes that a server has answered are kept
until a flush has made them stable (see `unflushed`); a new server gets them first (see `reconnect`).
"""

from __future__ import annotations

import errno
from collections import deque

from xenbusd.api import ResourceError
from xenbusd_vbd.image.commands import Pending, pending
from xenbusd_vbd.image.engine import Engine, Finished, Job
from xenbusd_vbd.image.reconnect import OUTAGE_S, LastingConnection, Log, Source
from xenbusd_vbd.image.unflushed import UnflushedWrites
from xenbusd_vbd.nbd.client_handshake import Export
from xenbusd_vbd.nbd.wire import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, TransmissionFlags
from xenbusd_vbd.protocol import EOPNOTSUPP, ERROR, INDIRECT_SEGMENTS_MAX, SECTOR, SECTORS_PER_PAGE

UNFLUSHED_MAX = 32 << 20
"""Bytes of unflushed writes: at half of it the engine flushes by itself; at the whole, writes wait for that flush."""
REQUEST_MAX = INDIRECT_SEGMENTS_MAX * SECTORS_PER_PAGE * SECTOR
"""Bytes in the largest request of a frontend."""


class NbdEngine(Engine):
    """Does jobs on an export of an NBD server. Made by `start`.

    Args:
        source: gives connections.
        writable: whether the disk may be written to.
        log: the device's.
    """

    discard_alignment = 0
    can_discard_securely = False

    def __init__(self, source: Source, *, writable: bool, log: Log) -> None:
        self.writable = writable
        self.sectors = 0
        self._log = log
        self._unflushed = UnflushedWrites()
        self._connection = LastingConnection(source, self._unflushed, self, log)
        self._published = False
        """Whether the export's abilities may have been published to the frontend: they stay the same from then on."""
        self._offers_flush = False
        self._waiting: deque[Pending] = deque()
        """Requests that wait for a server, and writes that wait for a flush of our own."""
        self._flushing = False
        """A flush of our own is under way."""
        self._flush_failed = False
        """A flush of our own has failed; the guest's next flush must report that."""
        self._failing = False
        """The server was away for too long: jobs fail at once."""

    async def start(self) -> None:
        """Connect for the first time.

        Raises:
            ResourceError: there is no server, or it does not offer what the disk needs.
        """
        await self._connection.start()

    @property
    def is_without_server(self) -> bool:  # type: ignore[override]  # read-only here
        """See `Engine`."""
        return self._connection.client is None

    async def refresh(self) -> None:
        """See `Engine.refresh`. NBD has no message for a size that changes: for a larger one we connect anew."""
        export = await self._connection.source.inquire()
        if export.size_bytes // SECTOR > self.sectors and self._connection.client is not None:
            await self._connection.renew("the image has grown")

    async def close(self) -> None:
        """See `Engine.close`. Our own server is ended, in order."""
        await self._connection.close()

    # Jobs, on their way out.

    def submit(self, jobs: list[Job], finished: Finished) -> list[Job]:
        """See `Engine.submit`."""
        done = []
        for job in jobs:
            entry = pending(job, finished, flushes=self._offers_flush)
            if entry is None:
                done.append(job)
            elif self._failing:
                job.status = ERROR
                done.append(job)
            else:
                self._begin(entry)
        self._send()
        return done

    def _begin(self, entry: Pending) -> None:
        """Queue a command for sending, or for later. The caller calls `_send`."""
        client, command = self._connection.client, entry.command
        if client is None or (command == CMD_WRITE and self._unflushed.bytes >= UNFLUSHED_MAX):
            self._waiting.append(entry)
        elif command == CMD_READ:
            assert entry.job is not None
            client.read(entry, entry.offset, entry.length, entry.job.buffers)
        elif command == CMD_WRITE:
            assert entry.message is not None
            client.write(entry, entry.message)
        elif command == CMD_FLUSH:
            entry.mark = self._unflushed.mark()
            client.command(entry, CMD_FLUSH)
        else:
            client.command(entry, CMD_TRIM, entry.offset, entry.length)

    def _resend(self) -> None:
        """Begin the waiting requests again."""
        waiting, self._waiting = self._waiting, deque()
        for entry in waiting:
            self._begin(entry)

    def _send(self) -> None:
        if self._connection.client is not None:
            self._connection.client.send()

    # Answers.

    def answered(self, answers: list[tuple[Pending, int]]) -> None:
        """Take a batch of answers: send the next command of jobs that have one, and deliver the others."""
        batches: dict[Finished, list[Job]] = {}
        for entry, error in answers:
            if error == errno.ESHUTDOWN and self._connection.client is not None:
                self._waiting.append(entry)  # for the next server
                self._connection.drop("the server shuts down")
            elif entry.job is None:
                self._own_flush_done(entry, error)
            elif self._settle(entry, entry.job, error):
                batches.setdefault(entry.finished, []).append(entry.job)
        self._flush_when_due()
        self._send()
        for finished, jobs in batches.items():
            finished(jobs)

    def _settle(self, entry: Pending, job: Job, error: int) -> bool:
        """Take the answer to one command; return whether the job is done."""
        command = entry.command
        if error:
            job.status = EOPNOTSUPP if error == errno.EOPNOTSUPP and command == CMD_TRIM else ERROR
            return True
        if command == CMD_READ:
            return True
        if command == CMD_WRITE and self._offers_flush:
            assert entry.message is not None
            self._unflushed.keep(entry.message)
        elif command == CMD_FLUSH:
            self._stable(entry.mark)
            if self._flush_failed:
                self._flush_failed = False
                job.status = ERROR
                return True
        if entry.advance():
            self._begin(entry)
            return False
        return True

    # Flushes of our own, so that unflushed writes do not fill the memory.

    def _flush_when_due(self) -> None:
        if self._unflushed.bytes >= UNFLUSHED_MAX // 2 and not self._flushing:
            self._flushing = True
            self._begin(Pending(None, _nobody, CMD_FLUSH))

    def _own_flush_done(self, entry: Pending, error: int) -> None:
        """If it failed, the writes that it covered count as lost: writing them again would not help."""
        self._flushing = False
        self._flush_failed = self._flush_failed or bool(error)
        self._stable(entry.mark)

    def _stable(self, mark: int) -> None:
        """A flush that was sent at `mark` is done."""
        self._unflushed.drop(mark)
        if self._waiting and self._connection.client is not None and self._unflushed.bytes < UNFLUSHED_MAX:
            self._resend()

    # What the connection calls; see `reconnect.Owner`.

    def accept(self, export: Export) -> None:
        """Adopt the server's description of its export, if the disk can be served from it."""
        flags = export.flags
        sectors = export.size_bytes // SECTOR
        if self.writable and flags & TransmissionFlags.READ_ONLY:
            raise ResourceError("the image server offers the image read-only; attach it with mode r", errno.EROFS)
        if export.maximum < REQUEST_MAX:
            raise ResourceError(
                f"the image server takes at most {export.maximum} bytes in a request, and a guest may send "
                f"{REQUEST_MAX}; raise its limit",
                errno.EINVAL,
            )
        if sectors < self.sectors:
            raise ResourceError(f"the image has shrunk from {self.sectors} to {sectors} sectors", errno.EINVAL)
        self.sectors = sectors
        if self._published:
            return
        self._published = True
        self._offers_flush = bool(flags & TransmissionFlags.SEND_FLUSH)
        self.can_discard = self.writable and bool(flags & TransmissionFlags.SEND_TRIM)
        self.physical_sector_bytes = max(SECTOR, export.minimum)
        power_of_two = export.preferred & (export.preferred - 1) == 0
        self.discard_granularity = max(SECTOR, export.preferred if power_of_two else 0, export.minimum)

    def connected(self) -> None:
        """Send the waiting requests."""
        self._failing = False
        self._flush_when_due()
        self._resend()
        self._send()

    def disconnected(self, reason: str, unanswered: list[Pending]) -> None:
        """Keep the unanswered requests for the next server, ahead of those that wait already."""
        self._waiting.extendleft(reversed(unanswered))
        self._log.warning(
            "image_server.lost", reason=reason, unanswered=len(self._waiting), unflushed=len(self._unflushed)
        )

    def given_up(self) -> None:
        """Fail the waiting requests: none waits for ever, and a disk whose server does not come back has failed."""
        self._failing = True
        self._flushing = False
        waiting, self._waiting = self._waiting, deque()
        self._log.warning("image_server.given_up", after_s=OUTAGE_S, failed=len(waiting))
        batches: dict[Finished, list[Job]] = {}
        for entry in waiting:
            if entry.job is not None:
                entry.job.status = ERROR
                batches.setdefault(entry.finished, []).append(entry.job)
        for finished, jobs in batches.items():
            finished(jobs)


def _nobody(jobs: list[Job]) -> None:
    """Take the jobs of a flush of our own, which nobody waits for."""
    del jobs
