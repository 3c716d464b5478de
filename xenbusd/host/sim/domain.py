"""The broker's record of one domain: the pages that it has granted, and the ports that it has open.

Source: xen/common/grant_table.c and event_channel.c, for the rules.
Decision: D12.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from xenbusd.errors import XenbusdError
from xenbusd.ids import PAGE_SIZE

FIRST_GREF = 8
"""References below it are reserved by Xen (grant_table.h, GNTTAB_NR_RESERVED_ENTRIES)."""

GRANTS_MAX = 32768
"""Pages that one domain may have granted at a time: Xen's default of 64 frames of 512 entries."""

PORTS_MAX = 16384
"""Ports that one domain may have open at a time; they cost the broker two descriptors each."""


class Refusal(XenbusdError):
    """A process asked for something that its domain may not have.

    Args:
        errno: for its reply.
        words: further words of the reply: the references that were refused.
    """

    def __init__(self, errno: int, words: Sequence[int] = ()) -> None:
        super().__init__(os.strerror(errno))
        self.errno = errno
        self.words = tuple(words)


class Memory:
    """Zeroed pages in a file without a name. Its size is sealed: no process can take a page away from another."""

    __slots__ = ("_readonly", "fd", "pages")

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._readonly = -1
        self.fd = os.memfd_create("xenbusd-share", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, pages * PAGE_SIZE)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except OSError:
            self.close()
            raise

    def descriptor(self, writable: bool) -> int:
        """The descriptor to send to a process. This object still owns it."""
        if writable:
            return self.fd
        if self._readonly < 0:
            self._readonly = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        return self._readonly

    def close(self) -> None:
        """Close the file, which lives on in the processes that have it mapped. Idempotent."""
        for fd in (self.fd, self._readonly):
            if fd >= 0:
                os.close(fd)
        self.fd = self._readonly = -1


class Grant(NamedTuple):
    """One page, granted to one domain."""

    memory: Memory
    page: int
    domid: int
    writable: bool


class Channel:
    """An event channel: two ends, and for each the eventfd that its owner waits on.

    Both eventfds live as long as either end does: an end that has lost its other end still sets an eventfd that nobody
    waits on, as Xen lets a port without another end be notified, and the next end that binds receives that
    notification.
    """

    __slots__ = ("bells", "domids", "ends")

    def __init__(self, domids: tuple[int, int]) -> None:
        first = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            second = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            os.close(first)
            raise
        self.bells = (first, second)
        self.domids = domids
        self.ends: list[Port | None] = [None, None]


class Port(NamedTuple):
    """One end of a channel."""

    number: int
    channel: Channel
    side: int

    @property
    def bound(self) -> bool:
        """Whether it is bound to another end."""
        return self.channel.ends[1 - self.side] is not None

    @property
    def descriptors(self) -> list[int]:
        """The eventfd to wait on, and the one that notifies the other end."""
        return [self.channel.bells[self.side], self.channel.bells[1 - self.side]]


class Domain:
    """A living domain.

    Args:
        domid: its number.
        vm: the UUID that the store knows it by.
    """

    def __init__(self, domid: int, vm: str) -> None:
        self.domid = domid
        self.vm = vm
        self.processes = 0
        self.grants: dict[int, Grant] = {}
        self.ports: dict[int, Port] = {}
        # Never used twice in a domain's life, so that neither a late unmap nor a late notification hits a successor.
        self._grefs = count(FIRST_GREF)
        self._numbers = count(1)

    def share(self, domid: int, pages: int, writable: bool) -> tuple[list[int], Memory]:
        """Make pages and grant them. The references returned follow each other."""
        if not pages:
            raise Refusal(errno.EINVAL)
        if len(self.grants) + pages > GRANTS_MAX:
            raise Refusal(errno.ENOSPC)
        memory = Memory(pages)
        grefs = [next(self._grefs) for _ in range(pages)]
        self.grants.update({gref: Grant(memory, page, domid, writable) for page, gref in enumerate(grefs)})
        return grefs, memory

    def unshare(self, grefs: Sequence[int], memory: Memory) -> None:
        """End a grant: nobody can map it any more. Domains that have it mapped keep the pages."""
        for gref in grefs:
            del self.grants[gref]
        memory.close()

    def granted(self, gref: int, to: int, writable: bool) -> Grant:
        """Return the grant of a page that another domain asks for, if it may have the page."""
        grant = self.grants.get(gref)
        if grant is None:
            raise Refusal(errno.EINVAL)
        if grant.domid != to or (writable and not grant.writable):
            raise Refusal(errno.EACCES)
        return grant

    def alloc_unbound(self, domid: int) -> Port:
        """Open a port for `domid` to bind to."""
        self._check_ports()
        return self._open(Channel((self.domid, domid)), 0)

    def bind_interdomain(self, otherend: Domain, number: int) -> Port:
        """Open a port at the other end of one of `otherend`'s. It starts out pending (T60)."""
        self._check_ports()
        far = otherend.ports.get(number)
        if far is None or far.bound or far.channel.domids[1 - far.side] != self.domid:
            raise Refusal(errno.EINVAL)
        port = self._open(far.channel, 1 - far.side)
        _ring(far.channel.bells[port.side])
        return port

    def unbind(self, number: int) -> None:
        """Close a port; the other end goes back to unbound, reserved for this domain (T64)."""
        port = self.ports.pop(number)
        channel = port.channel
        channel.ends[port.side] = None
        if not port.bound:
            for bell in channel.bells:
                os.close(bell)

    def _check_ports(self) -> None:
        if len(self.ports) >= PORTS_MAX:
            raise Refusal(errno.ENOSPC)

    def _open(self, channel: Channel, side: int) -> Port:
        port = Port(next(self._numbers), channel, side)
        channel.ends[side] = port
        self.ports[port.number] = port
        return port


def _ring(bell: int) -> None:
    try:
        os.eventfd_write(bell, 1)
    except BlockingIOError:
        return  # its counter is full: the port is pending already
