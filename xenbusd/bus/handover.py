"""How one backend daemon hands a connection to the next: files in the run directory, one for each ring or page.

While a device is connected, each of its rings has a journal there, and a page that is no ring has a note. The next
daemon adopts a ring if its journal says that its slots can be trusted to hold requests. The journal's policy decides
which promise that takes; a driver names the policy: `dev.connect(RING, journal=InOrder())`. A device's rings are
adopted together: if one cannot be, none is, and the device is closed.

A file is named after its device, `<device>.ring`, with the ring's number appended where that is not 0. A new version of
xenbusd adopts the files of the old one: their formats do not change, unless their magic or version does.

Decisions: D2, D3, D34, D39, D61, D72.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from typing import ClassVar

from xenbusd.bus.paths import parse_bus_id
from xenbusd.errors import ConnectionEnded
from xenbusd.ring.journal import Flags, Journal, size_bytes
from xenbusd.ring.layout import slots

_NOTE = struct.Struct("<4sIB")
"""A page's note: magic, the page's identity, whether its request was taken."""
_NOTE_MAGIC = b"xbpg"


# -- policies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JournalPolicy:
    """A driver's promise about its responses, which decides when the next daemon may adopt its rings. Use a
    subclass."""

    flags: ClassVar[Flags] = Flags(0)
    """The promises in a fresh journal."""


@dataclass(frozen=True)
class AfterCleanStop(JournalPolicy):
    """No promise: a ring is adopted only if the previous daemon stopped in order and had answered every request that
    it took. The default."""


@dataclass(frozen=True)
class InOrder(JournalPolicy):
    """The driver answers requests in the order in which it took them, and any of them may be carried out twice. Then a
    ring is adopted after a kill as well."""

    flags: ClassVar[Flags] = Flags.IN_ORDER


AFTER_CLEAN_STOP = AfterCleanStop()


# -- files ---------------------------------------------------------------------------------------------------------


def journal_path(run_dir: str, device: str, number: int = 0) -> str:
    """Return the path of the file of a device's ring `number`, or of its page.

    Args:
        run_dir: the run directory.
        device: the device's name in log lines, such as vbd-3-51712.
        number: 0 for the first ring.
    """
    return f"{run_dir}/{device}.ring{number or ''}"


def forget(run_dir: str, device: str) -> None:
    """Remove the files of all rings of a device, however many there were: its connection has ended. Idempotent."""
    first = os.path.basename(journal_path(run_dir, device))
    with suppress(FileNotFoundError):
        for found in os.listdir(run_dir):
            if found == first or (found.startswith(first) and found[len(first) :].isdigit()):
                os.unlink(os.path.join(run_dir, found))


def sweep(run_dir: str, device_class: str, present: Collection[str]) -> None:
    """Remove the files of devices that vanished while no daemon served them.

    Args:
        run_dir: the run directory, in which no other process has files of this class.
        device_class: files of other classes stay.
        present: the names of the devices that are there.
    """
    with suppress(FileNotFoundError):
        found = {name.partition(".ring")[0] for name in os.listdir(run_dir) if ".ring" in name}
        for device in found - set(present):
            parts = parse_bus_id(device)
            if parts is not None and parts[0] == device_class:
                forget(run_dir, device)


def identity(grefs: Sequence[int], otherend_port: int) -> int:
    """A number for a ring or page: the same for the same grants and port."""
    return zlib.crc32(repr((list(grefs), otherend_port)).encode())


class Handover:
    """The journal of one ring of a device, and its file.

    Args:
        path: the file, on a file system that lives as long as the host: /run.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._memory: mmap | None = None
        self.journal: Journal | None = None
        """Set while the ring is connected."""

    def begin(self, ring_id: int, pages: int, slot_bytes: int, policy: JournalPolicy = AFTER_CLEAN_STOP) -> Journal:
        """Make a fresh journal.

        Raises:
            OSError: the run directory is full or gone.
        """
        size = size_bytes(slots(pages, slot_bytes), slot_bytes)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a page that cannot be allocated later would kill us by SIGBUS
            self._memory = mmap(fd, size)
        finally:
            os.close(fd)
        self.journal = Journal(memoryview(self._memory), ring_id, fresh=True, flags=policy.flags)
        return self.journal

    def adopt(self, ring_id: int, pages: int, slot_bytes: int) -> Journal:
        """Take over the previous daemon's journal. That daemon's policy, not ours, decides whether the ring can be
        adopted.

        Raises:
            ConnectionEnded: there is none, it is another ring's, or the ring was not left in a state to be adopted.
        """
        size = size_bytes(slots(pages, slot_bytes), slot_bytes)
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            raise ConnectionEnded("the previous daemon left no journal of the ring") from None
        try:
            if os.fstat(fd).st_size != size:
                raise ConnectionEnded("the journal is not of this ring's size")
            self._memory = mmap(fd, size)
        finally:
            os.close(fd)
        try:
            journal = Journal(memoryview(self._memory), ring_id, fresh=False)
        except ValueError as error:
            raise ConnectionEnded(str(error)) from None
        self.journal = journal
        if not journal.flags:
            raise ConnectionEnded("the previous daemon was killed, and may have answered out of order")
        journal.flags &= ~Flags.LEFT
        return journal

    def mark_clean(self) -> None:
        """Mark the ring clean: every request taken was answered, so the next daemon may adopt it even if the driver
        answers out of order."""
        if self.journal is not None:
            self.journal.flags |= Flags.LEFT

    def close(self) -> None:
        """Close the journal; its file stays. Idempotent."""
        if self.journal is not None:
            self.journal.release()
            self.journal = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None


class PageNote:
    """The note beside a page that is no ring: whether the request in the page was taken. The driver decides what
    follows: a daemon that adopts a page whose request was taken knows that the request may have been carried out, in
    full, in part, or not at all.

    Args:
        path: the file, made if it is not there; `forget` removes it.
        page_id: the page's `identity`.

    Raises:
        OSError: the run directory is full or gone.
    """

    def __init__(self, path: str, page_id: int) -> None:
        self._id = page_id
        self._taken = False
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def taken(self) -> bool:
        """Whether the page's request was taken."""
        return self._taken

    @taken.setter
    def taken(self, taken: bool) -> None:
        """Write the note."""
        self._taken = taken
        os.pwrite(self._fd, _NOTE.pack(_NOTE_MAGIC, self._id, taken), 0)

    def begin(self) -> None:
        """Make a fresh note."""
        os.ftruncate(self._fd, 0)
        self.taken = False

    def adopt(self) -> None:
        """Take over the previous daemon's note.

        Raises:
            ConnectionEnded: there is none, or it is another page's.
        """
        raw = os.pread(self._fd, _NOTE.size + 1, 0)
        if len(raw) != _NOTE.size or _NOTE.unpack(raw)[:2] != (_NOTE_MAGIC, self._id):
            raise ConnectionEnded("the previous daemon left no note of this page")
        self._taken = bool(_NOTE.unpack(raw)[2])

    def close(self) -> None:
        """Close the file, which stays. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
