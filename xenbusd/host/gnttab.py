"""libxengnttab: mapping and copying other domains' pages, and sharing our own.

CDLL, and so without the GIL during a call: a map may sleep in the kernel while a page is paged out (T66), and a copy
moves up to a ring's worth of data.

Source: tools/include/xengnttab.h, xentoollog.h; xen/include/public/grant_table.h (GNTST_*, GNTCOPY_*).
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Sequence
from functools import cache

from xenbusd.errors import GrantError
from xenbusd.host.address import address_of
from xenbusd.host.grefs import DOMID_MAX, GREF_MAX, in_words
from xenbusd.host.interface import Copy
from xenbusd.host.library import Prototype, last_errno, load
from xenbusd.host.segments import check
from xenbusd.ids import Domid, Gref

GNTDEV = "/dev/xen/gntdev"
"""The device that libxengnttab's first half opens."""
GNTALLOC = "/dev/xen/gntalloc"
"""The device that its second half opens."""

_PROT_READ, _PROT_WRITE = 1, 2
_GNTCOPY_SOURCE_GREF, _GNTCOPY_DEST_GREF = 1, 2
_XTL_CRITICAL = 9


class _Foreign(ctypes.Structure):
    """A place in another domain's page."""

    _fields_ = [("ref", ctypes.c_uint32), ("offset", ctypes.c_uint16), ("domid", ctypes.c_uint16)]


class CopyPointer(ctypes.Union):
    """union xengnttab_copy_ptr."""

    _fields_ = [("virt", ctypes.c_void_p), ("foreign", _Foreign)]


class CopySegment(ctypes.Structure):
    """struct xengnttab_grant_copy_segment."""

    _fields_ = [
        ("source", CopyPointer),
        ("dest", CopyPointer),
        ("len", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("status", ctypes.c_int16),
    ]


# The same layout once more, for the data path: filling a ctypes structure field by field costs eight times as much.
_TO_GRANT = struct.Struct("=Q IHH HHh 2x")
"""source.virt; dest.foreign.ref, .offset, .domid; len, flags, status."""
_FROM_GRANT = struct.Struct("=IHH Q HHh 2x")
"""source.foreign.ref, .offset, .domid; dest.virt; len, flags, status."""
SEGMENT_BYTES = 24
"""sizeof(struct xengnttab_grant_copy_segment) where a pointer has 8 bytes."""

_ERRNO_OF_STATUS = {
    -1: errno.EIO,  # GNTST_general_error
    -2: errno.ESRCH,  # GNTST_bad_domain
    -3: errno.EINVAL,  # GNTST_bad_gntref
    -4: errno.EBADF,  # GNTST_bad_handle
    -5: errno.EFAULT,  # GNTST_bad_virt_addr
    -6: errno.EFAULT,  # GNTST_bad_dev_addr
    -7: errno.ENOSPC,  # GNTST_no_device_space
    -8: errno.EACCES,  # GNTST_permission_denied
    -9: errno.EFAULT,  # GNTST_bad_page
    -10: errno.EINVAL,  # GNTST_bad_copy_arg
    -11: errno.E2BIG,  # GNTST_address_too_big
    -12: errno.EAGAIN,  # GNTST_eagain
    -13: errno.ENOSPC,  # GNTST_no_space
}

_refs = ctypes.POINTER(ctypes.c_uint32)
_handle = ctypes.c_void_p

PROTOTYPES = {
    "xengnttab_open": Prototype(_handle, (ctypes.c_void_p, ctypes.c_uint)),
    "xengnttab_close": Prototype(ctypes.c_int, (_handle,)),
    "xengnttab_map_domain_grant_refs": Prototype(
        ctypes.c_void_p, (_handle, ctypes.c_uint32, ctypes.c_uint32, _refs, ctypes.c_int)
    ),
    "xengnttab_unmap": Prototype(ctypes.c_int, (_handle, ctypes.c_void_p, ctypes.c_uint32)),
    "xengnttab_grant_copy": Prototype(ctypes.c_int, (_handle, ctypes.c_uint32, ctypes.POINTER(CopySegment))),
    "xengntshr_open": Prototype(_handle, (ctypes.c_void_p, ctypes.c_uint)),
    "xengntshr_close": Prototype(ctypes.c_int, (_handle,)),
    "xengntshr_share_pages": Prototype(ctypes.c_void_p, (_handle, ctypes.c_uint32, ctypes.c_int, _refs, ctypes.c_int)),
    "xengntshr_unshare": Prototype(ctypes.c_int, (_handle, ctypes.c_void_p, ctypes.c_uint32)),
}

LOG_PROTOTYPES = {
    "xtl_createlogger_stdiostream": Prototype(ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)),
}


@cache
def library() -> ctypes.CDLL:
    """libxengnttab.

    Raises:
        UsageError: it is not installed.
    """
    return load("libxengnttab.so.1", "libxengnttab1", PROTOTYPES)


@cache
def _quiet_logger() -> int | None:
    """A logger for the library, which otherwise writes a line to stderr for each reference that a guest got wrong."""
    log = load("libxentoollog.so.1", "libxentoollog1", LOG_PROTOTYPES)
    stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    logger: int | None = log.xtl_createlogger_stdiostream(stderr, _XTL_CRITICAL, 0)
    return logger


class GrantMapper:
    """/dev/xen/gntdev: other domains' pages. Addresses are plain ints.

    Raises:
        UsageError: the library is missing.
        GrantError: the device is, or may not be opened.
    """

    def __init__(self) -> None:
        self._lib = library()
        self._handle: int | None = self._lib.xengnttab_open(_quiet_logger(), 0)
        if self._handle is None:
            raise GrantError("xengnttab_open", last_errno(), GNTDEV)

    def map(self, domid: Domid, grefs: Sequence[Gref], writable: bool) -> int:
        """Map pages one after the other; all, or none. Return the address.

        Raises:
            GrantError: as in `Grants.map`.
        Blocks: in the kernel.
        """
        about = f"domain {domid}, references {in_words(grefs)}, {'writable' if writable else 'read-only'}"
        known = 0 <= domid <= DOMID_MAX and all(0 <= gref <= GREF_MAX for gref in grefs)
        if not grefs or not known:
            raise GrantError("xengnttab_map_domain_grant_refs", errno.EINVAL, about)
        handle = _open_one(self._handle, "xengnttab_map_domain_grant_refs")
        count = len(grefs)
        refs = (ctypes.c_uint32 * count)(*grefs)
        protection = _PROT_READ | _PROT_WRITE if writable else _PROT_READ
        address: int | None = self._lib.xengnttab_map_domain_grant_refs(handle, count, domid, refs, protection)
        if address is None:
            raise GrantError("xengnttab_map_domain_grant_refs", last_errno(), about)
        return address

    def unmap(self, address: int, pages: int) -> None:
        """Unmap the pages that one `map` has mapped.

        Raises:
            GrantError: the kernel refused.
        """
        if self._handle is None:
            return  # the device is closed: the pages go when the process ends
        if self._lib.xengnttab_unmap(self._handle, address, pages):
            raise GrantError("xengnttab_unmap", last_errno(), f"{pages} pages at {address:#x}")

    def copy(self, segments: Sequence[Copy]) -> list[int]:
        """Copy a batch with one call. The statuses are as in `Grants.copy`.

        Segments that `check` refuses are left out of the call.

        Raises:
            GrantError: the batch as a whole could not be submitted.
        Blocks: in the kernel.
        """
        handle = _open_one(self._handle, "xengnttab_grant_copy")
        statuses = check(segments)
        batch = (CopySegment * len(segments))()
        submitted: list[int] = []
        for index, (to_grant, domid, gref, offset, local) in enumerate(segments):
            if statuses[index]:
                continue
            at = len(submitted) * SEGMENT_BYTES
            where = address_of(local)
            if to_grant:
                _TO_GRANT.pack_into(batch, at, where, gref, offset, domid, local.nbytes, _GNTCOPY_DEST_GREF, 0)
            else:
                _FROM_GRANT.pack_into(batch, at, gref, offset, domid, where, local.nbytes, _GNTCOPY_SOURCE_GREF, 0)
            submitted.append(index)
        if submitted and self._lib.xengnttab_grant_copy(handle, len(submitted), batch):
            raise GrantError("xengnttab_grant_copy", last_errno(), f"{len(submitted)} segments")
        for position, index in enumerate(submitted):
            status = batch[position].status
            if status:
                statuses[index] = _ERRNO_OF_STATUS.get(status, errno.EIO)
        return statuses

    def close(self) -> None:
        """Close the device. Idempotent. Pages that are still mapped stay mapped until the process ends."""
        if self._handle is not None:
            self._lib.xengnttab_close(self._handle)
            self._handle = None


class GrantSharer:
    """/dev/xen/gntalloc: our own pages, granted to others.

    Raises:
        UsageError: the library is missing.
        GrantError: the device is, or may not be opened.
    """

    def __init__(self) -> None:
        self._lib = library()
        self._handle: int | None = self._lib.xengntshr_open(_quiet_logger(), 0)
        if self._handle is None:
            raise GrantError("xengntshr_open", last_errno(), f"{GNTALLOC}; is the module xen-gntalloc loaded?")

    def share(self, domid: Domid, pages: int, writable: bool) -> tuple[int, list[int]]:
        """Allocate zeroed pages, one after the other here. Return the address, and a reference for each.

        Raises:
            GrantError: a limit is reached: 1024 pages for all processes, unless the module's `limit` says otherwise.
        """
        about = f"domain {domid}, {pages} pages"
        if pages < 1 or not 0 <= domid <= DOMID_MAX:
            raise GrantError("xengntshr_share_pages", errno.EINVAL, about)
        handle = _open_one(self._handle, "xengntshr_share_pages")
        refs = (ctypes.c_uint32 * pages)()
        address: int | None = self._lib.xengntshr_share_pages(handle, domid, pages, refs, writable)
        if address is None:
            raise GrantError("xengntshr_share_pages", last_errno(), about)
        return address, list(refs)

    def unshare(self, address: int, pages: int) -> None:
        """Take back the pages that one `share` has granted.

        Raises:
            GrantError: the kernel refused.
        """
        if self._handle is None:
            return  # the device is closed: the pages go when the process ends
        if self._lib.xengntshr_unshare(self._handle, address, pages):
            raise GrantError("xengntshr_unshare", last_errno(), f"{pages} pages at {address:#x}")

    def close(self) -> None:
        """Close the device. Idempotent. Pages that are still shared stay shared until the process ends."""
        if self._handle is not None:
            self._lib.xengntshr_close(self._handle)
            self._handle = None


def _open_one(handle: int | None, call: str) -> int:
    """Return an open handle. A library would crash on a null handle; a closed device raises an error instead."""
    if handle is None:
        raise GrantError(call, errno.EBADF, "the host is closed")
    return handle
