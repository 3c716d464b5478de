"""The vtpm page and the heads of TPM commands. Pure: no I/O here.

Both ends share one page, which is no ring: it holds one command, then its response. The frontend writes a command and
SUBMIT; the backend writes the response and FINISH. CANCEL asks for an early end of what is under way.

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
"""Offset of the byte that says whose turn it is; always written last."""

TPM_HEAD = struct.Struct(">HII")
"""Of a command: tag, size in bytes of the whole, ordinal. Of a response: tag, size, result (TPM 2.0 Part 1, 18)."""

MESSAGE_MAX = 4096
"""Bytes of a command or a response: what swtpm, and Linux, have room for."""

EXTRA_PAGES = 1
"""Extra pages that our frontend offers: without any, a message of 4096 bytes would lack the head's 8."""

LOCALITY_MAX = 3
"""Locality 4 is the hardware's own; a guest has none."""


class PageState(IntEnum):
    """enum vtpm_shared_page_state."""

    IDLE = 0
    SUBMIT = 1
    FINISH = 2
    CANCEL = 3


class Version(NamedTuple):
    """A kind of TPM, and how its refusals look."""

    name: str
    response_tag: int
    failure: int
    """The TPM, or the way to it, has failed; nobody knows what became of the command."""
    bad_size: int
    bad_locality: int
    cancelled: int

    def refusal(self, result: int) -> bytes:
        """A response that holds nothing but a result."""
        return TPM_HEAD.pack(self.response_tag, TPM_HEAD.size, result)


TPM_2_0 = Version("2.0", 0x8001, 0x101, 0x142, 0x907, 0x909)
"""TPM_RC_FAILURE, TPM_RC_COMMAND_SIZE, TPM_RC_LOCALITY, TPM_RC_CANCELED (TPM 2.0 Part 2, 6.6)."""
TPM_1_2 = Version("1.2", 0x00C4, 9, 25, 61, 9)
"""TPM_FAIL, TPM_BAD_PARAM_SIZE, TPM_BAD_LOCALITY; 1.2 has no result for what was cancelled (TPM 1.2 Part 2, 16)."""

VERSIONS = {version.name: version for version in (TPM_2_0, TPM_1_2)}


class Head(NamedTuple):
    """The page's head, as it was at one moment."""

    length: int
    state: int
    locality: int
    extra_grefs: tuple[int, ...]

    @property
    def data_at(self) -> int:
        """Where the message begins in the first page."""
        return HEAD.size + 4 * len(self.extra_grefs)

    @property
    def room(self) -> int:
        """Bytes that all the pages together have for a message."""
        return PAGE_SIZE - self.data_at + PAGE_SIZE * len(self.extra_grefs)


def read_head(page: memoryview) -> Head:
    """Read the head, once: the other end may change it at any time.

    Raises:
        OtherendError: it promises more than there is room for, or is in no state that there is.
    """
    length, state, locality, _, extra = HEAD.unpack(bytes(page[: HEAD.size]))
    grefs = struct.unpack(f"<{extra}I", bytes(page[HEAD.size : HEAD.size + 4 * extra]))
    head = Head(length, state, locality, grefs)
    if state > PageState.CANCEL:
        raise OtherendError(f"the page's state is {state}, which is none")
    if length > head.room:
        raise OtherendError(f"the page promises {length} bytes, with room for {head.room}")
    return head


class Piece(NamedTuple):
    """Part of a message, in one page."""

    page: int
    """0: the first page; n: extra page n - 1."""
    offset: int
    start: int
    """Where it begins in the message."""
    length: int


def pieces(head: Head, length: int) -> list[Piece]:
    """How a message of `length` bytes, which must fit, lies in the pages."""
    found = []
    start, page, offset = 0, 0, head.data_at
    while start < length:
        piece = Piece(page, offset, start, min(length - start, PAGE_SIZE - offset))
        found.append(piece)
        start, page, offset = start + piece.length, page + 1, 0
    return found


def is_whole(message: bytes) -> bool:
    """Whether a command or response is exactly as long as its own head says."""
    return TPM_HEAD.size <= len(message) <= MESSAGE_MAX and TPM_HEAD.unpack_from(message)[1] == len(message)


_TAGS_WITHOUT_SESSION = frozenset({0x8001, 0x00C1})
"""TPM_ST_NO_SESSIONS; TPM_TAG_RQU_COMMAND."""
_ONLY_READING = frozenset({0x169, 0x173, 0x17A, 0x17C, 0x17E, 0x181, 0x15, 0x65})
"""2.0: NV_ReadPublic, ReadPublic, GetCapability, GetTestResult, PCR_Read, ReadClock; 1.2: PcrRead, GetCapability. Not
GetRandom: the generator's state is state, and going on with an old one would give the same numbers again."""


def leaves_state_alone(command: bytes) -> bool:
    """Whether a command changes nothing that must outlive swtpm's process: no register, session, object or index."""
    tag, _, ordinal = TPM_HEAD.unpack_from(command)
    return tag in _TAGS_WITHOUT_SESSION and ordinal in _ONLY_READING
