"""Carries out jobs through an NBD server, and outlives it: when the connection ends, another one is made, what the old
one had not answered is sent again, and the guest notices no more than a pause.

Reads, writes of the same data and flushes may be repeated, in any number. What the server had answered, and might have
lost with its memory, is written again first (see `kept_writes`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from contextlib import suppress
from typing import Protocol

from xenbusd.api import ResourceError
from xenbusd_vbd.image.engine import Engine, Finished, Job
from xenbusd_vbd.image.unflushed import KeptWrites
from xenbusd_vbd.nbd.client import NbdClient, write_message
from xenbusd_vbd.nbd.client_handshake import Export
from xenbusd_vbd.nbd.wire import FLUSH, READ, TRIM, WRITE, TransmissionFlags
from xenbusd_vbd.protocol import (
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH_DISKCACHE,
    INDIRECT_SEGMENTS_MAX,
    SECTOR,
    SECTORS_PER_PAGE,
    WRITE_BARRIER,
)
from xenbusd_vbd.protocol import READ as BLKIF_READ

KEPT_MAX = 32 << 20
"""Bytes of kept writes: when half of it is reached we flush by ourselves, and at the whole writes wait for that."""
TRIM_MAX = 1 << 30
"""Bytes in one TRIM: its length has 32 bits."""
REQUEST_MAX = INDIRECT_SEGMENTS_MAX * SECTORS_PER_PAGE * SECTOR
"""Bytes in the largest request of a frontend."""

PAUSE_S, PAUSE_MAX_S = 0.1, 5.0
"""Between attempts to get a server back; each is twice as long as the one before."""
STEADY_S = 10.0
"""A server that was there for so long has the next attempts begin at once again."""
OUTAGE_S = 30.0
"""How long requests wait for a server; then they are answered with an error, until there is one."""


class Log(Protocol):
    """What we need of a device's log."""

    def info(self, event: str, /, **facts: object) -> object:
        """Say what happens once in a disk's life."""

    def warning(self, event: str, /, **facts: object) -> object:
        """Say what an administrator may want to look at."""


class Source(Protocol):
    """Where connections come from."""

    async def open(self) -> tuple[socket.socket, Export]:
        """Make a connection, and a server for it where that is ours to do; the one before is given up.

        Raises:
            ResourceError
        """

    async def inquire(self) -> Export:
        """Look what the export is like now, without touching the connection that there is.

        Raises:
            ResourceError
        """

    async def close(self) -> None:
        """End the server, if it is ours. Idempotent."""


class _Pending:
    """A job on its way, a command at a time: a barrier has three. Without a job, a flush of our own."""

    __slots__ = ("command", "finished", "job", "later", "length", "mark", "message", "offset")

    def __init__(self, job: Job | None, finished: Finished, command: int, offset: int = 0, length: int = 0) -> None:
        self.job = job
        self.finished = finished
        self.command = command
        self.offset = offset
        self.length = length
        self.later: tuple[int, ...] = ()
        """Commands that follow this one; for a TRIM, what is left of the range: offset and length."""
        self.message: bytearray | None = None
        """A write, with its data."""
        self.mark = 0
        """Of the kept writes, when a flush was sent."""


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
        self._known = False
        self._source = source
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._client: NbdClient[_Pending] | None = None
        """None while there is no server to send to."""
        self._waiting: deque[_Pending] = deque()
        """For a server; or, writes, for our own flush."""
        self._kept = KeptWrites()
        self._flushing = False
        self._flush_failed = False
        """A flush of our own has failed, which the guest must hear at its next one."""
        self._failing = False
        self._flushes = False
        self._since = 0.0
        self._pause_s = PAUSE_S
        self._recovery: asyncio.Task[None] | None = None
        self._back = asyncio.Event()

    async def start(self) -> None:
        """Connect for the first time.

        Raises:
            ResourceError: there is no server, or it does not offer what the disk needs.
        """
        sock, export = await self._source.open()
        try:
            self._accept(export)
        except ResourceError:
            sock.close()
            raise
        self._ready(NbdClient(sock, self._answered, self._lost))

    def _accept(self, export: Export) -> None:
        """Take over what the server says, if the disk can live with it."""
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
        if self._known:
            return  # the rest has been published, and stays as it is
        self._known = True
        self._flushes = bool(flags & TransmissionFlags.SEND_FLUSH)
        self.can_discard = self.writable and bool(flags & TransmissionFlags.SEND_TRIM)
        self.physical_sector_bytes = max(SECTOR, export.minimum)
        power_of_two = export.preferred & (export.preferred - 1) == 0
        self.discard_granularity = max(SECTOR, export.preferred if power_of_two else 0, export.minimum)

    def _ready(self, client: NbdClient[_Pending]) -> None:
        client.answered = self._answered
        self._client = client
        self._since = self._loop.time()
        self._failing = False
        self._back.set()
        self._flush_when_due()
        self._go_on()
        client.send()

    # Jobs, on their way out.

    def submit(self, jobs: list[Job], finished: Finished) -> list[Job]:
        """See `Engine.submit`."""
        done = []
        for job in jobs:
            errand = self._errand(job, finished)
            if errand is None:
                done.append(job)
            elif self._failing:
                job.status = ERROR
                done.append(job)
            else:
                self._begin(errand)
        if self._client is not None:
            self._client.send()
        return done

    def _errand(self, job: Job, finished: Finished) -> _Pending | None:
        """What has to be done for a job; None if nothing."""
        request = job.request
        op, offset, length = request.op, request.sector * SECTOR, request.sectors * SECTOR
        if op == BLKIF_READ:
            return _Pending(job, finished, READ, offset, length)
        if op == DISCARD:
            first = min(length, TRIM_MAX)
            errand = _Pending(job, finished, TRIM, offset, first)
            errand.later = (offset + first, length - first)
            return errand if length else None
        commands: tuple[int, ...] = (WRITE,) if length else ()
        if op in (FLUSH_DISKCACHE, WRITE_BARRIER) and self._flushes:
            commands = (FLUSH, *commands, *((FLUSH,) if op == WRITE_BARRIER and length else ()))
        if not commands:
            return None  # a server that does not know flushes has no cache to flush
        errand = _Pending(job, finished, commands[0], offset, length)
        errand.later = commands[1:]
        if length:
            errand.message = write_message(offset, job.buffers)
        return errand

    def _begin(self, errand: _Pending) -> None:
        """Send a command, or have it wait. The caller calls `send`."""
        client = self._client
        if client is None or (errand.command == WRITE and self._kept.bytes >= KEPT_MAX):
            self._waiting.append(errand)
        elif errand.command == READ:
            assert errand.job is not None
            client.read(errand, errand.offset, errand.length, errand.job.buffers)
        elif errand.command == WRITE:
            assert errand.message is not None
            client.write(errand, errand.message)
        elif errand.command == FLUSH:
            errand.mark = self._kept.mark()
            client.command(errand, FLUSH)
        else:
            client.command(errand, TRIM, errand.offset, errand.length)

    def _go_on(self) -> None:
        """Begin again what waited."""
        waiting, self._waiting = self._waiting, deque()
        for errand in waiting:
            self._begin(errand)

    # Answers.

    def _answered(self, answers: list[tuple[_Pending, int]]) -> None:
        """Take what the server has answered, a batch at a time: go on with what is not finished, deliver what is."""
        client = self._client
        batches: dict[Finished, list[Job]] = {}
        for errand, error in answers:
            if error == errno.ESHUTDOWN and client is not None:
                self._waiting.append(errand)  # it will be answered by the next one
                client.drop("the server shuts down")
            elif errand.job is None:
                self._flushed(errand, error)
            elif self._settle(errand, errand.job, error):
                batches.setdefault(errand.finished, []).append(errand.job)
        self._flush_when_due()
        if self._client is not None:
            self._client.send()
        for finished, jobs in batches.items():
            finished(jobs)

    def _flush_when_due(self) -> None:
        if self._kept.bytes >= KEPT_MAX // 2 and not self._flushing:
            self._flushing = True
            self._begin(_Pending(None, _nobody, FLUSH))

    def _settle(self, errand: _Pending, job: Job, error: int) -> bool:
        """Take the answer to one command; return whether the job is done."""
        command = errand.command
        if error:
            job.status = EOPNOTSUPP if error == errno.EOPNOTSUPP and command == TRIM else ERROR
            return True
        if command == READ:
            return True
        if command == WRITE and self._flushes:
            assert errand.message is not None
            self._kept.keep(errand.message)
        elif command == FLUSH:
            self._stable(errand.mark)
            if self._flush_failed:
                self._flush_failed = False
                job.status = ERROR
                return True
        elif command == TRIM:
            offset, left = errand.later
            if left:
                errand.offset, errand.length = offset, min(left, TRIM_MAX)
                errand.later = (offset + errand.length, left - errand.length)
                self._begin(errand)
            return not left
        if not errand.later:
            return True
        errand.command, *later = errand.later
        errand.later = tuple(later)
        self._begin(errand)
        return False

    def _flushed(self, errand: _Pending, error: int) -> None:
        """A flush of our own is done. If it failed, what it was for is as good as lost, and no copy would mend it."""
        self._flushing = False
        self._flush_failed = self._flush_failed or bool(error)
        self._stable(errand.mark)

    def _stable(self, mark: int) -> None:
        self._kept.drop(mark)
        if self._waiting and self._client is not None and self._kept.bytes < KEPT_MAX:
            self._go_on()

    # The server goes, and comes back.

    def _lost(self, reason: str) -> None:
        """The connection has ended: keep what it did not answer, and see to another one."""
        client, self._client = self._client, None
        if client is None:
            return
        self._waiting.extendleft(reversed(client.unanswered))
        self._back.clear()
        self._log.warning("image_server.lost", reason=reason, unanswered=len(self._waiting), unflushed=len(self._kept))
        if self._loop.time() - self._since >= STEADY_S:
            self._pause_s = PAUSE_S
        self._recovery = self._loop.create_task(self._recover())

    async def _recover(self) -> None:
        """Get a server, with growing pauses; after a while the guest is told that there is none."""
        patience = self._loop.call_later(OUTAGE_S, self._fail_all)
        began = self._loop.time()
        try:
            while True:
                try:
                    client = await self._connect_again()
                    break
                except (ResourceError, OSError) as error:
                    self._log.warning("image_server.failed", error=str(error), again_in_s=round(self._pause_s, 1))
                await asyncio.sleep(self._pause_s)
                self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        finally:
            patience.cancel()
        self._recovery = None
        self._log.info("image_server.back", outage_s=round(self._loop.time() - began, 3))
        self._ready(client)

    async def _connect_again(self) -> NbdClient[_Pending]:
        """Connect, and write again what the server before had answered and may have lost: one after the other, for they
        may overlap."""
        sock, export = await self._source.open()
        try:
            self._accept(export)
        except ResourceError:
            sock.close()
            raise
        replay = _Replay()
        client: NbdClient[_Pending] = NbdClient(sock, replay.answered, replay.lost)
        try:
            for message in self._kept:
                await replay.ask(client, message)
            if client.over:
                raise _gone_again("after what it had lost was written again")
        except BaseException:
            client.close()
            raise
        client.lost = self._lost
        return client

    def _fail_all(self) -> None:
        """Nobody can be kept waiting for ever: a disk whose server does not come back has failed."""
        self._failing = True
        self._flushing = False
        waiting, self._waiting = self._waiting, deque()
        self._log.warning("image_server.given_up", after_s=OUTAGE_S, failed=len(waiting))
        batches: dict[Finished, list[Job]] = {}
        for errand in waiting:
            if errand.job is not None:
                errand.job.status = ERROR
                batches.setdefault(errand.finished, []).append(errand.job)
        for finished, jobs in batches.items():
            finished(jobs)

    async def refresh(self) -> None:
        """Look at the size again. NBD has no word for a size that changes: for a larger one we connect anew."""
        export = await self._source.inquire()
        if export.size_bytes // SECTOR > self.sectors and self._client is not None:
            self._client.drop("the image has grown")
            self._back.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(OUTAGE_S):
                    await self._back.wait()

    async def close(self) -> None:
        """See `Engine.close`. Our own server is ended, in order."""
        if self._recovery is not None:
            self._recovery.cancel()
            with suppress(asyncio.CancelledError):
                await self._recovery
            self._recovery = None
        if self._client is not None:
            self._client.close()
            self._client = None
        await self._source.close()


class _Replay:
    """Writes of a time before, on a new connection, one at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None

    async def ask(self, client: NbdClient[_Pending], message: bytearray) -> None:
        answer = self._answer = asyncio.get_running_loop().create_future()
        client.write(_REPLAYED, message)
        client.send()
        if client.over:
            raise _gone_again("it does not take what is sent")
        if error := await answer:
            raise ResourceError(f"writing again what the server before had taken fails with error {error}", error)

    def answered(self, answers: list[tuple[_Pending, int]]) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answers[0][1])

    def lost(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(_gone_again(reason))


def _gone_again(reason: str) -> ResourceError:
    return ResourceError(f"the image server has gone again: {reason}", errno.ECONNRESET)


def _nobody(jobs: list[Job]) -> None:
    """Nobody waits for a flush of our own."""
    del jobs


_REPLAYED = _Pending(None, _nobody, WRITE)
