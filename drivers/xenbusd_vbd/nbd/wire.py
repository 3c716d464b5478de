"""The NBD wire: layouts, numbers, and the rules for requests and replies, as a server sees them. Pure: no I/O here.

Source: doc/proto.md of the NetworkBlockDevice/nbd repository; each layout names its section there. All fields are in
network byte order. Names are that document's, without the NBD_ prefix.

Decision: D66.
"""

from __future__ import annotations

import errno
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from xenbusd_vbd.nbd.errors import NbdError

INIT_PASSWD = 0x4E42444D41474943
"""ASCII NBDMAGIC ("Newstyle negotiation")."""
IHAVEOPT = 0x49484156454F5054
"""ASCII IHAVEOPT: the server's second magic, and the first of each option ("Newstyle negotiation")."""
OPTION_REPLY_MAGIC = 0x3E889045565A9
"""First of each reply to an option ("Fixed newstyle negotiation")."""
REQUEST_MAGIC = 0x25609513
"""NBD_REQUEST_MAGIC ("Request message")."""
SIMPLE_REPLY_MAGIC = 0x67446698
"""NBD_SIMPLE_REPLY_MAGIC ("Simple reply message")."""
STRUCTURED_REPLY_MAGIC = 0x668E33EF
"""NBD_STRUCTURED_REPLY_MAGIC ("Structured reply chunk message")."""

GREETING = struct.Struct(">QQH")
"""INIT_PASSWD, IHAVEOPT, handshake flags: the server begins with it ("Newstyle negotiation")."""
CLIENT_FLAGS = struct.Struct(">I")
"""The client's answer to it ("Newstyle negotiation")."""
OPTION = struct.Struct(">QII")
"""IHAVEOPT, option, bytes of data that follow ("Newstyle negotiation")."""
OPTION_REPLY = struct.Struct(">QIII")
"""OPTION_REPLY_MAGIC, option, reply type, bytes of data that follow ("Fixed newstyle negotiation")."""
EXPORT_NAME_REPLY = struct.Struct(">QH")
"""Size in bytes, transmission flags; then 124 zeroes unless NO_ZEROES was agreed on ("Newstyle negotiation")."""
EXPORT_NAME_PADDING = bytes(124)
INFO_EXPORT_REPLY = struct.Struct(">HQH")
"""Info.EXPORT, size in bytes, transmission flags ("Option reply types", NBD_INFO_EXPORT)."""
INFO_BLOCK_SIZE_REPLY = struct.Struct(">HIII")
"""Info.BLOCK_SIZE, minimum, preferred, maximum, in bytes ("Option reply types", NBD_INFO_BLOCK_SIZE)."""
REQUEST = struct.Struct(">IHHQQI")
"""REQUEST_MAGIC, command flags, type, handle, offset, length; a WRITE's data follows ("Request message")."""
SIMPLE_REPLY = struct.Struct(">IIQ")
"""SIMPLE_REPLY_MAGIC, error, handle; a successful READ's data follows ("Simple reply message")."""
CHUNK = struct.Struct(">IHHQI")
"""STRUCTURED_REPLY_MAGIC, flags, type, handle, bytes of payload that follow ("Structured reply chunk message")."""
DATA_CHUNK = struct.Struct(">IHHQIQ")
"""CHUNK and the offset that an OFFSET_DATA payload begins with ("Structured reply types")."""
ERROR_CHUNK = struct.Struct(">IHHQIIH")
"""CHUNK, error, bytes of message: an ERROR payload; the message follows ("Structured reply types")."""

NAME_MAX = 4096
"""Bytes in an export's name ("Conventions")."""
REQUEST_DATA_MAX = 32 * 1024 * 1024
"""Most bytes in one READ or WRITE: a server should take requests of that size ("Block size constraints")."""

FIXED_NEWSTYLE = 1
"""Handshake flag and client flag ("Handshake flags", "Client flags")."""
NO_ZEROES = 2
"""Handshake flag and client flag: EXPORT_NAME is answered without the padding."""
_REPLY_DONE = 1


class Option(IntEnum):
    """Requests of a client during the handshake ("Option types")."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    """Answers to an option ("Option reply types")."""

    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUP = 2**31 + 1
    ERR_INVALID = 2**31 + 3
    ERR_UNKNOWN = 2**31 + 6


class Info(IntEnum):
    """Kinds of information about an export ("Option reply types", NBD_REP_INFO)."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlags(IntFlag):
    """Abilities of an export ("Transmission flags")."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8


class Command(IntEnum):
    """Request types ("Request types")."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4


class ChunkType(IntEnum):
    """Contents of a structured reply chunk ("Structured reply types")."""

    NONE = 0
    OFFSET_DATA = 1
    ERROR = 2**15 + 1


CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM = Command
"""The members once more, by the document's names: they are compared for each request, and looking up an attribute of an
enum takes five times as long as the comparison."""

FLAG_FUA = 1 << 0
"""Command flag: answer once the data is on stable storage ("Command flags")."""
FLAG_DF = 1 << 2
"""Command flag on READ: at most one data chunk, which is all that we ever send ("Command flags")."""


class WireError(NbdError):
    """The other end sent what NBD forbids, or asked for something that has no error reply; the connection ends."""

    def __init__(self, message: str) -> None:
        super().__init__(message, errno.EPROTO)


class Offer(NamedTuple):
    """An export as it is announced to a client."""

    name: str
    description: str
    size_bytes: int
    flags: TransmissionFlags
    """Without SEND_DF, which depends on the connection."""
    minimum: int
    """Bytes: every offset and length is a multiple of it."""
    preferred: int
    maximum: int
    """Bytes in one READ or WRITE."""


class Rules(NamedTuple):
    """The limits that requests on one connection have to keep."""

    size_bytes: int
    minimum: int
    maximum: int
    read_only: bool
    can_flush: bool
    can_trim: bool
    command_flags: int
    """Command flags that any request may carry."""
    read_flags: int
    """Command flags that a READ may carry."""

    @classmethod
    def of(cls, offer: Offer, flags: int) -> Rules:
        """Derive the rules from the offer and the transmission flags that were negotiated."""
        command_flags = FLAG_FUA if flags & TransmissionFlags.SEND_FUA else 0
        return cls(
            size_bytes=offer.size_bytes,
            minimum=offer.minimum,
            maximum=offer.maximum,
            read_only=bool(flags & TransmissionFlags.READ_ONLY),
            can_flush=bool(flags & TransmissionFlags.SEND_FLUSH),
            can_trim=bool(flags & TransmissionFlags.SEND_TRIM),
            command_flags=command_flags,
            read_flags=command_flags | FLAG_DF if flags & TransmissionFlags.SEND_DF else command_flags,
        )

    def refusal(self, command: int, flags: int, offset: int, length: int) -> tuple[int, str] | None:
        """Return why a request may not reach the disk, as an errno and a sentence; None if it may.

        Source: "Error values", "Command flags" and "Block size constraints".
        """
        if flags & ~(self.read_flags if command == CMD_READ else self.command_flags):
            return errno.EINVAL, f"command {command} does not go with the flags {flags:#x} here"
        if command in (CMD_READ, CMD_WRITE, CMD_TRIM):
            if command != CMD_READ and self.read_only:
                return errno.EPERM, "the disk is read-only"
            if command == CMD_TRIM and not self.can_trim:
                return errno.EINVAL, "the disk cannot trim"
            if (offset | length) % self.minimum:
                return errno.EINVAL, f"offset and length must be multiples of {self.minimum}"
            if offset + length > self.size_bytes:
                return (errno.ENOSPC if command == CMD_WRITE else errno.EINVAL), f"the disk ends at {self.size_bytes}"
            if length > self.maximum and command != CMD_TRIM:
                return errno.EINVAL, f"one request is for at most {self.maximum} bytes"
            return None
        if command == CMD_FLUSH:
            if not self.can_flush:
                return errno.EINVAL, "the disk cannot flush"
            if offset or length:
                return errno.EINVAL, "a flush has neither offset nor length"
            return None
        return errno.EINVAL, f"there is no command {command} here"


_ERRORS = {
    errno.EPERM: errno.EPERM,
    errno.EACCES: errno.EPERM,
    errno.EROFS: errno.EPERM,
    errno.ENOMEM: errno.ENOMEM,
    errno.EINVAL: errno.EINVAL,
    errno.ENOSPC: errno.ENOSPC,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
    errno.EOVERFLOW: errno.EOVERFLOW,
    errno.ENOTSUP: errno.ENOTSUP,
    errno.ESHUTDOWN: errno.ESHUTDOWN,
}


def wire_error(code: int) -> int:
    """The error that NBD has for an errno; EIO where it has none.

    Source: "Error values"; they are Linux's own numbers.
    """
    return _ERRORS.get(code, errno.EIO)


def simple_reply(handle: int, error: int = 0) -> bytes:
    """Answer a request without data, or begin the answer to a READ."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, handle)


def data_chunk_head(handle: int, offset: int, length: int) -> bytes:
    """Begin the only chunk of a structured answer to a READ; `length` bytes of data follow, at least one."""
    return DATA_CHUNK.pack(STRUCTURED_REPLY_MAGIC, _REPLY_DONE, ChunkType.OFFSET_DATA, handle, 8 + length, offset)


def none_chunk(handle: int) -> bytes:
    """The whole of a structured answer to a READ of nothing."""
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, _REPLY_DONE, ChunkType.NONE, handle, 0)


def error_chunk(handle: int, error: int, message: str) -> bytes:
    """The whole of a structured answer to a request that failed; the message is for the user."""
    text = message.encode()[:4096]
    head = ERROR_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC, _REPLY_DONE, ChunkType.ERROR, handle, 6 + len(text), error, len(text)
    )
    return head + text
