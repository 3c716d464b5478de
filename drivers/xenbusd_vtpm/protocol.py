"""The layout of the vtpm page, and the heads of TPM commands and responses. Pure.

Both ends share one page, which is not a ring: it holds one command, then its response. The frontend writes a command
and SUBMIT; the backend writes the response and FINISH. The frontend may write CANCEL to have a command aborted.

Source: xen/include/public/io/tpmif.h; where its comment on the size of the head (16) and the implementations differ,
the implementations: Linux, drivers/char/tpm/xen-tpmfront.c (shr_data_offset).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from xenbusd.api import PAGE_SIZE, OtherendError

HEAD = struct.Struct("<IBBBB")
"""length in bytes, state, locality, padding, nr_extra_pages; then a grant reference (u32) for each extra page."""

LENGTH = struct.Struct("<I")
STATE_AT = 4
"""Offset of the state, a byte that says which end may write the page; always written last."""

TPM_HEAD = struct.Struct(">HII")
"""Of a command: tag, size of the whole in bytes, ordinal. Of a response: tag, size, result (TPM 2.0 Part 1, 18)."""

MESSAGE_MAX = 4096
"""Bytes of the longest command or response: the limit of swtpm and of Linux."""

EXTRA_PAGES = 1
"""Extra pages that our frontend offers: one page has no room for a head of 8 bytes and a message of 4096."""

LOCALITY_MAX = 3
"""The highest locality of a guest; locality 4 is reserved for the hardware."""


class PageState(IntEnum):
    """enum vtpm_shared_page_state."""

    IDLE = 0
    SUBMIT = 1
    FINISH = 2
    CANCEL = 3


class Version(NamedTuple):
    """A version of TPM, with the tag and the results of responses that we make ourselves."""

    name: str
    response_tag: int
    failure: int
    """The TPM, or the connection to it, has failed; the command may have been carried out or not."""
    bad_size: int
    bad_locality: int
    cancelled: int

    def refusal(self, result: int) -> bytes:
        """Return a response that consists of a head with this result."""
        return TPM_HEAD.pack(self.response_tag, TPM_HEAD.size, result)


TPM_2_0 = Version("2.0", 0x8001, 0x101, 0x142, 0x907, 0x909)
"""TPM_RC_FAILURE, TPM_RC_COMMAND_SIZE, TPM_RC_LOCALITY, TPM_RC_CANCELED (TPM 2.0 Part 2, 6.6)."""
TPM_1_2 = Version("1.2", 0x00C4, 9, 25, 61, 9)
"""TPM_FAIL, TPM_BAD_PARAM_SIZE, TPM_BAD_LOCALITY; 1.2 has no result for a cancelled command (TPM 1.2 Part 2, 16)."""

VERSIONS = {version.name: version for version in (TPM_2_0, TPM_1_2)}


class Head(NamedTuple):
    """A copy of the page's head."""

    length: int
    state: int
    locality: int
    extra_grefs: tuple[int, ...]

    @property
    def data_at(self) -> int:
        """Offset of the message in the first page (T49)."""
        return HEAD.size + 4 * len(self.extra_grefs)

    @property
    def room(self) -> int:
        """Bytes that all pages together have for a message."""
        return PAGE_SIZE - self.data_at + PAGE_SIZE * len(self.extra_grefs)


def read_head(page: memoryview) -> Head:
    """Copy the head, once: the other end may change it at any time.

    Raises:
        OtherendError: its length is more than the pages have room for, or its state does not exist.
    """
    length, state, locality, _, extra = HEAD.unpack(bytes(page[: HEAD.size]))
    grefs = struct.unpack(f"<{extra}I", bytes(page[HEAD.size : HEAD.size + 4 * extra]))
    head = Head(length, state, locality, grefs)
    if state > PageState.CANCEL:
        raise OtherendError(f"the page's state is {state}, which does not exist")
    if length > head.room:
        raise OtherendError(f"the page announces {length} bytes, but has room for {head.room}")
    return head


class Piece(NamedTuple):
    """Part of a message, in one page."""

    page: int
    """0: the first page; n: extra page n - 1."""
    offset: int
    start: int
    """Its offset in the message."""
    length: int


def pieces(head: Head, length: int) -> list[Piece]:
    """Return the pieces of a message of `length` bytes, at most `head.room`, in order."""
    found = []
    start, page, offset = 0, 0, head.data_at
    while start < length:
        piece = Piece(page, offset, start, min(length - start, PAGE_SIZE - offset))
        found.append(piece)
        start, page, offset = start + piece.length, page + 1, 0
    return found


def is_whole(message: bytes) -> bool:
    """Whether a command or response is exactly as long as its own head says, and not longer than `MESSAGE_MAX`."""
    return TPM_HEAD.size <= len(message) <= MESSAGE_MAX and TPM_HEAD.unpack_from(message)[1] == len(message)


_TAGS_WITHOUT_SESSION = frozenset({0x8001, 0x00C1})
"""TPM_ST_NO_SESSIONS; TPM_TAG_RQU_COMMAND."""
_ONLY_READING = frozenset({0x169, 0x173, 0x17A, 0x17C, 0x17E, 0x181, 0x15, 0x65})
"""2.0: NV_ReadPublic, ReadPublic, GetCapability, GetTestResult, PCR_Read, ReadClock; 1.2: PcrRead, GetCapability. Not
GetRandom: it changes the generator's state, and resuming from an older state would give the same numbers again."""


def leaves_state_alone(command: bytes) -> bool:
    """Whether a command leaves everything as it is that must outlive swtpm: registers, sessions, objects, indexes."""
    tag, _, ordinal = TPM_HEAD.unpack_from(command)
    return tag in _TAGS_WITHOUT_SESSION and ordinal in _ONLY_READING
