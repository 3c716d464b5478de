"""The interface of a Xen host to a split driver. The real and the simulated host both implement exactly this.

A `Host` belongs to one process in one domain. Closing it, or the death of its process, gives back every mapping,
share and port that it held. Nothing here is a coroutine: each call enters a library, takes microseconds when
simulated, and may sleep in the kernel on real Xen, so that on the control path a caller uses a thread for `map`.

Source: tools/include/xengnttab.h, xenevtchn.h.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from xenbusd.ids import Domid, Gref, Port
from xenbusd.store.endpoint import Endpoint


class Mapping(ABC):
    """Pages of another domain, mapped here as one contiguous range."""

    view: memoryview
    """Writable unless mapped read-only; format "B", 4096 bytes per grant reference, page-aligned."""

    @abstractmethod
    def unmap(self) -> None:
        """Give the pages back. Idempotent.

        The caller must have dropped every slice and cast of `view` first; `view` itself is released here.

        Raises:
            LocalProtocolError: a slice or cast of `view` is still alive.
            GrantError: the hypervisor refused.
        """


class Share(ABC):
    """Zeroed pages of our own that one other domain may map or copy."""

    view: memoryview
    """Writable, format "B", 4096 bytes per page, page-aligned."""
    grefs: tuple[Gref, ...]
    """One reference for each page, in order."""

    @abstractmethod
    def unshare(self) -> None:
        """Take the grant back. Idempotent. A page that the other end still has mapped lives until that end unmaps it.

        As with `Mapping.unmap`, every slice and cast of `view` must be gone; `view` itself is released here.

        Raises:
            LocalProtocolError: a slice or cast of `view` is still alive; the grant stands.
        """


class Copy(NamedTuple):
    """One segment of a grant copy. It may not cross a page of the granting domain."""

    to_grant: bool
    """True: local -> their page. False: their page -> local."""
    domid: Domid
    gref: Gref
    offset: int
    """Byte offset in their page; offset + len(local) <= 4096."""
    local: memoryview
    """Our bytes: contiguous; writable when to_grant is False."""


class Grants(ABC):
    """The grant tables: ours to share from, theirs to map."""

    @abstractmethod
    def map(self, domid: Domid, grefs: Sequence[Gref], *, writable: bool = True) -> Mapping:
        """Map grants of `domid`, all or nothing.

        Raises:
            GrantError: a reference is not granted to us, the domain is gone, or a limit is reached.
        Blocks: in the kernel; for longer while a page of the granting domain is paged out (T66).
        """

    @abstractmethod
    def copy(self, segments: Sequence[Copy]) -> list[int]:
        """Copy many segments in one call.

        Returns:
            A status for each: 0, or a positive errno. Check every one (XSA-361).

        Raises:
            GrantError: the batch as a whole could not be submitted; the status of every segment is unknown.
        """

    @abstractmethod
    def share(self, domid: Domid, pages: int, *, writable: bool = True) -> Share:
        """Allocate `pages` zeroed pages and grant them to `domid`.

        Raises:
            GrantError: no such domain (simulated), or a limit is reached (gntalloc: 1024 pages for the device node).
        """


class EventChannels(ABC):
    """Event channel ports of this process, all delivered through one descriptor."""

    fd: int
    """Readable while a port is pending. For the event loop; do not read it, call `pending`."""

    @abstractmethod
    def alloc_unbound(self, domid: Domid) -> Port:
        """Open a port that `domid` may bind to.

        Raises:
            EventChannelError
        """

    @abstractmethod
    def bind_interdomain(self, domid: Domid, otherend_port: Port) -> Port:
        """Bind to a port that `domid` has opened for us. The new local port starts out pending (T60).

        Raises:
            EventChannelError: it is not open for us, bound already, or the domain is gone.
        """

    @abstractmethod
    def notify(self, port: Port) -> None:
        """Make the other end pending. Silently does nothing if the port is unbound, as in Xen.

        Raises:
            EventChannelError: not a port of ours.
        """

    @abstractmethod
    def pending(self) -> list[Port]:
        """Take the pending ports, without waiting. Each port returned is masked until `unmask` (T61)."""

    @abstractmethod
    def unmask(self, port: Port) -> None:
        """Let the port be delivered again: at once, if it was notified meanwhile. Call it after the work."""

    @abstractmethod
    def unbind(self, port: Port) -> None:
        """Close a port. The other end, if bound, goes back to unbound and may be bound again (T64). Idempotent."""


class Host(ABC):
    """The host interface of one process."""

    name: str
    """For messages: "xen" or "sim:/run/host.sock"."""
    grants: Grants
    events: EventChannels
    store: Endpoint

    @abstractmethod
    def close(self) -> None:
        """Give everything back. Idempotent."""
