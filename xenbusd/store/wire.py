"""The XenStore wire: packets, operations, paths and permissions. Pure: no I/O here.

The vocabulary is pyxs's: its operation numbers, its packet header, its path rules. Two operations that pyxs does
not know are added. pyxs's `Packet` class is used by neither end, because it counts request ids past 2^32.

Source: xen/include/public/io/xs_wire.h (struct xsd_sockmsg, enum xsd_sockmsg_type, xsd_errors),
docs/misc/xenstore.txt.
Decision: D11.
"""

from __future__ import annotations

import errno
import struct
from enum import IntEnum
from typing import NamedTuple

from pyxs._internal import Op as _pyxs_op
from pyxs._internal import Packet as _pyxs_packet
from pyxs.exceptions import InvalidPath, InvalidPayload, InvalidPermission
from pyxs.helpers import check_path as _pyxs_check_path
from pyxs.helpers import check_perms as _pyxs_check_perms

HEADER: struct.Struct = _pyxs_packet._struct
"""type, req_id, tx_id, len: four native u32 (struct xsd_sockmsg)."""

PAYLOAD_MAX = 4096
"""Bytes of payload in one packet, either way (XENSTORE_PAYLOAD_MAX; T13)."""

ABSOLUTE_PATH_MAX = 3072
"""Bytes of an absolute path, without the NUL (XENSTORE_ABS_PATH_MAX)."""

RELATIVE_PATH_MAX = 2048
"""Bytes of a relative path, without the NUL (XENSTORE_REL_PATH_MAX)."""

U32 = 0xFFFFFFFF

_LET_THROUGH = (b"\n", b"\0")
"""The characters that pyxs's patterns accept at the very end of a path and xenstored does not: `$` also matches before
a newline."""


class Op(IntEnum):
    """enum xsd_sockmsg_type; the names are pyxs's, and its numbers are checked against these by a test."""

    CONTROL = _pyxs_op.DEBUG
    DIRECTORY = _pyxs_op.DIRECTORY
    READ = _pyxs_op.READ
    GET_PERMS = _pyxs_op.GET_PERMS
    WATCH = _pyxs_op.WATCH
    UNWATCH = _pyxs_op.UNWATCH
    TRANSACTION_START = _pyxs_op.TRANSACTION_START
    TRANSACTION_END = _pyxs_op.TRANSACTION_END
    INTRODUCE = _pyxs_op.INTRODUCE
    RELEASE = _pyxs_op.RELEASE
    GET_DOMAIN_PATH = _pyxs_op.GET_DOMAIN_PATH
    WRITE = _pyxs_op.WRITE
    MKDIR = _pyxs_op.MKDIR
    RM = _pyxs_op.RM
    SET_PERMS = _pyxs_op.SET_PERMS
    WATCH_EVENT = _pyxs_op.WATCH_EVENT
    ERROR = _pyxs_op.ERROR
    IS_DOMAIN_INTRODUCED = _pyxs_op.IS_DOMAIN_INTRODUCED
    RESUME = _pyxs_op.RESUME
    SET_TARGET = _pyxs_op.SET_TARGET
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class Message(NamedTuple):
    """One packet, parsed. `op` is a plain int: the other end may send any number."""

    op: int
    req_id: int
    tx_id: int
    payload: bytes


def pack(op: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
    """Frame one packet.

    Raises:
        InvalidPayload: if the payload is over 4096 bytes; xenstored would close the connection on it.
    """
    if len(payload) > PAYLOAD_MAX:
        raise InvalidPayload(f"a XenStore payload is at most {PAYLOAD_MAX} bytes, this one has {len(payload)}")
    return HEADER.pack(op, req_id, tx_id, len(payload)) + payload


def check_path(path: str) -> bytes:
    """Return `path` as wire bytes, or say why it cannot be one.

    Raises:
        InvalidPath: (pyxs's) over-long, empty, a trailing or double slash, or a character xenstored refuses.
    """
    raw = path.encode("ascii", "replace")
    limit = ABSOLUTE_PATH_MAX if raw.startswith(b"/") else RELATIVE_PATH_MAX
    if len(raw) > limit:
        raise InvalidPath(f"a XenStore path is at most {limit} bytes, this one has {len(raw)}: {path[:64]}...")
    try:
        if raw.endswith(_LET_THROUGH):
            raise InvalidPath(raw)
        _pyxs_check_path(raw)
    except InvalidPath:
        raise InvalidPath(
            f"{path!r} is no XenStore path: use letters, digits and -/_@, no trailing or double slash"
        ) from None
    return raw


def check_perms(perms: list[str]) -> list[bytes]:
    """Return a permission list such as `["n3", "r0"]` as wire bytes; the first entry names the owner.

    Raises:
        InvalidPermission: (pyxs's) an entry that is not w, r, b or n and a domid; or an empty list.
    """
    try:
        if not perms or any(perm.endswith("\n") for perm in perms):
            raise InvalidPermission(perms)
        return list(_pyxs_check_perms([perm.encode("ascii", "replace") for perm in perms]))
    except InvalidPermission:
        raise InvalidPermission(f"{perms!r}: a permission is one of n r w b and a domid, as in n3 or r0") from None


def errno_name(code: int) -> bytes:
    """The name that goes into an ERROR packet for an errno (xs_wire.h, xsd_errors)."""
    return errno.errorcode.get(code, "EINVAL").encode()


def errno_number(name: bytes) -> int:
    """The errno that an ERROR packet's name stands for; an unknown name is EIO."""
    value = getattr(errno, name.rstrip(b"\0").decode("ascii", "replace"), errno.EIO)
    return value if isinstance(value, int) else errno.EIO


__all__ = [
    "ABSOLUTE_PATH_MAX",
    "HEADER",
    "PAYLOAD_MAX",
    "RELATIVE_PATH_MAX",
    "U32",
    "InvalidPath",
    "InvalidPayload",
    "InvalidPermission",
    "Message",
    "Op",
    "check_path",
    "check_perms",
    "errno_name",
    "errno_number",
    "pack",
]
