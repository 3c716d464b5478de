"""The host interface on a real Xen host, through Xen's own libraries and the kernel's devices.

A mapped page is plain memory to Python, which does not know that it can be unmapped. So each range is watched: as long
as a slice or cast of its view is alive, it is not unmapped, and the caller gets a LocalProtocolError instead of a
SIGSEGV.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable, Sequence

from xenbusd.errors import GrantError, LocalProtocolError, UsageError
from xenbusd.host.evtchn import EVTCHN, RealEventChannels
from xenbusd.host.gnttab import GNTDEV, GrantMapper, GrantSharer
from xenbusd.host.interface import Copy, Grants, Host, Mapping, Share
from xenbusd.ids import PAGE_SIZE, Domid, Gref
from xenbusd.store.endpoint import Endpoint, device_endpoint, unix_endpoint

CAPABILITIES = "/proc/xen/capabilities"
"""This file holds "control_d" in the domain that runs the toolstack (linux/drivers/xen/xenfs/super.c)."""


class MappedRange:
    """Memory that the kernel has mapped for us, and Python's views of it.

    Args:
        address: page-aligned.
        pages: how many.
        writable: otherwise writing through `view` raises TypeError; it would be a SIGSEGV.
    """

    def __init__(self, address: int, pages: int, writable: bool) -> None:
        self.address = address
        self.pages = pages
        self._writable = writable
        self._make_view()

    def _make_view(self) -> None:
        memory = (ctypes.c_char * (self.pages * PAGE_SIZE)).from_address(self.address)
        view = memoryview(memory).cast("B")
        self.view = view if self._writable else view.toreadonly()
        self._memory = weakref.ref(memory)
        """Alive for as long as any view of it is."""

    def release(self) -> None:
        """Release `view`, so that the memory may be unmapped. Idempotent.

        Raises:
            LocalProtocolError: a slice or cast of it is alive.
        """
        try:
            self.view.release()
            in_use = self._memory() is not None
        except BufferError:
            in_use = True
        if in_use:
            self._make_view()
            raise LocalProtocolError(f"{self.pages} pages cannot be unmapped: a slice of their view is still in use")


class Held:
    """Pages that were mapped or shared, until they are given back.

    Args:
        memory: the pages.
        give_back: unmaps or unshares pages at an address.
        all_held: the set of all held pages of one host; these pages are in it until they are given back.
    """

    def __init__(self, memory: MappedRange, give_back: Callable[[int, int], None], all_held: set[Held]) -> None:
        self.view = memory.view
        self._memory = memory
        self._give_back = give_back
        self._all_held = all_held
        all_held.add(self)

    def release(self) -> None:
        """Give the pages back. Idempotent.

        Raises:
            LocalProtocolError: a slice or cast of `view` is alive; the pages are still held.
        """
        if self not in self._all_held:
            return
        try:
            self._memory.release()
        finally:
            self.view = self._memory.view
        self._give_back(self._memory.address, self._memory.pages)
        self._all_held.remove(self)


class RealMapping(Held, Mapping):
    """Made by `RealGrants.map`."""

    def unmap(self) -> None:
        """See `Mapping.unmap`."""
        self.release()


class RealShare(Held, Share):
    """Made by `RealGrants.share`."""

    def __init__(self, sharer: GrantSharer, memory: MappedRange, grefs: tuple[Gref, ...], all_held: set[Held]) -> None:
        super().__init__(memory, sharer.unshare, all_held)
        self.grefs = grefs

    def unshare(self) -> None:
        """See `Share.unshare`."""
        self.release()


class RealGrants(Grants):
    """The grant tables. /dev/xen/gntalloc is opened when something is shared for the first time.

    Raises:
        UsageError, GrantError: the library or the device is missing.
    """

    def __init__(self) -> None:
        self._mapper = GrantMapper()
        self._sharer: GrantSharer | None = None
        self._held: set[Held] = set()

    def map(self, domid: Domid, grefs: Sequence[Gref], *, writable: bool = True) -> RealMapping:
        """See `Grants.map`."""
        address = self._mapper.map(domid, grefs, writable)
        return RealMapping(MappedRange(address, len(grefs), writable), self._mapper.unmap, self._held)

    def copy(self, segments: Sequence[Copy]) -> list[int]:
        """See `Grants.copy`."""
        return self._mapper.copy(segments)

    def share(self, domid: Domid, pages: int, *, writable: bool = True) -> RealShare:
        """See `Grants.share`."""
        if self._sharer is None:
            self._sharer = GrantSharer()
        address, grefs = self._sharer.share(domid, pages, writable)
        memory = MappedRange(address, pages, True)
        return RealShare(self._sharer, memory, tuple(map(Gref, grefs)), self._held)

    def close(self) -> None:
        """Give back all pages but those whose views are still in use, and close the devices. Idempotent."""
        for held in list(self._held):
            with contextlib.suppress(LocalProtocolError, GrantError):
                held.release()
        self._mapper.close()
        if self._sharer is not None:
            self._sharer.close()


class RealHost(Host):
    """The host interface of this process, in the domain in which it runs.

    Raises:
        UsageError: this is no Xen domain, or a library is missing.
        HypercallError: a device may not be opened.
    """

    def __init__(self) -> None:
        missing = [path for path in (EVTCHN, GNTDEV) if not os.path.exists(path)]
        if missing:
            raise UsageError(
                f"no Xen here: {' and '.join(missing)} missing. In a Xen domain: modprobe xen-evtchn xen-gntdev; "
                "elsewhere: --host sim:PATH"
            )
        self.name = "xen"
        self.store = store_endpoint()
        self.events = self._events = RealEventChannels()
        try:
            self.grants = self._grants = RealGrants()
        except BaseException:
            self._events.close()
            raise

    def close(self) -> None:
        """See `Host.close`. Pages whose views are still in use stay mapped until the process ends."""
        self._events.close()
        self._grants.close()


def store_endpoint(capabilities: str = CAPABILITIES) -> Endpoint:
    """Return the store's endpoint: xenstored's socket in the toolstack's domain, elsewhere the kernel's device."""
    try:
        with open(capabilities, encoding="ascii", errors="replace") as file:
            controls = "control_d" in file.read()
    except OSError:
        controls = False
    return unix_endpoint() if controls else device_endpoint()
