"""The messages between a process and the broker. Pure: no I/O here.

The socket is of type SOCK_SEQPACKET: one packet is one message. Every message is a row of u32 in native order, for
both ends are on one machine. A request begins with its verb, a reply with an errno (0: done). Descriptors travel
beside a reply, never beside a request. A process sends one request at a time; the reply answers it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

BATCH = 240
"""Most grant references in one MAP or COPY: the descriptors of a reply must stay under the kernel's SCM_MAX_FD, 253."""

DESCRIPTORS_MAX = 253
"""Room for descriptors when receiving a reply (SCM_MAX_FD, linux/include/net/scm.h)."""

REQUEST_BYTES_MAX = 4 * (1 + 3 * BATCH)
"""The longest request: a COPY of `BATCH` references."""

REPLY_BYTES_MAX = 4096
"""Room for the longest reply but one."""

CENSUS_BYTES_MAX = 1 << 18
"""Room for a CENSUS of some ten thousand domains."""

U32 = 0xFFFFFFFF

STORE_SUFFIX = ".store"
"""Added to the broker's path: the store's own UNIX socket; every connection to it acts as domain 0."""


class Verb(IntEnum):
    """The requests of a process to the broker: arguments -> results [descriptors]."""

    HELLO = 1
    """domid -> nothing. This process is in that domain; the first one brings the domain to life."""
    STORE = 2
    """nothing -> nothing [a stream socket that speaks XenStore as this domain]."""
    SHARE = 3
    """domid, pages, writable -> the first gref, the others follow it [memory file]."""
    UNSHARE = 4
    """the first gref of a share -> nothing."""
    MAP = 5
    """domid, writable, grefs... -> handle, then (descriptor index, page) for each [memory files].
    Refused: the offending grefs."""
    UNMAP = 6
    """handle -> nothing."""
    COPY = 7
    """(domid, gref, writable)... -> (errno, descriptor index, page) for each [memory files]."""
    ALLOC_UNBOUND = 8
    """domid -> port [to wait on, to signal]."""
    BIND_INTERDOMAIN = 9
    """domid, their port -> port [to wait on, to signal]."""
    UNBIND = 10
    """port -> nothing."""
    CENSUS = 11
    """nothing -> a row of `Holdings` for each domain. The one request that needs no HELLO."""


_SHORTEST = {
    Verb.HELLO: 1,
    Verb.STORE: 0,
    Verb.SHARE: 3,
    Verb.UNSHARE: 1,
    Verb.MAP: 3,
    Verb.UNMAP: 1,
    Verb.COPY: 3,
    Verb.ALLOC_UNBOUND: 1,
    Verb.BIND_INTERDOMAIN: 2,
    Verb.UNBIND: 1,
    Verb.CENSUS: 0,
}
_LONGEST = _SHORTEST | {Verb.MAP: 2 + BATCH, Verb.COPY: 3 * BATCH}


class Request(NamedTuple):
    """A request, checked for its shape only; the broker checks whether its numbers name anything."""

    verb: Verb
    words: tuple[int, ...]


class Holdings(NamedTuple):
    """One domain's holdings, as the broker has recorded them."""

    domid: int
    processes: int
    """Connections of this domain. 0: domain 0 at rest; or dead, and a zombie for as long as others map its pages."""
    ports: int
    """Event channel ports open."""
    ports_bound: int
    """Those among them that are bound to another end."""
    grants_shared: int
    """Pages granted, and not taken back."""
    grants_mapped: int
    """Pages of this domain that others, or itself, have mapped; a page counts once for each mapping."""


def pack(words: Sequence[int]) -> bytes:
    """Frame a request or a reply.

    Raises:
        ValueError: a word is no u32.
    """
    try:
        return struct.pack(f"={len(words)}I", *words)
    except struct.error:
        raise ValueError(f"not all of {list(words)[:8]} are numbers from 0 to {U32}") from None


def parse_request(data: bytes) -> Request:
    """Parse a request.

    Raises:
        ValueError: the packet is no request; its sender's connection is to be closed.
    """
    words = _unpack(data)
    if not words:
        raise ValueError("an empty request")
    verb = Verb(words[0])
    count = len(words) - 1
    if not _SHORTEST[verb] <= count <= _LONGEST[verb] or (verb is Verb.COPY and count % 3):
        raise ValueError(f"{verb.name} with {count} arguments")
    return Request(verb, words[1:])


def parse_reply(data: bytes) -> tuple[int, tuple[int, ...]]:
    """Parse a reply into its errno and its results.

    Raises:
        ValueError: this is no reply.
    """
    words = _unpack(data)
    if not words:
        raise ValueError("an empty reply")
    return words[0], words[1:]


def rows(words: tuple[int, ...]) -> Iterator[Holdings]:
    """Read the results of a CENSUS."""
    return map(Holdings._make, struct.iter_unpack("=6I", struct.pack(f"={len(words)}I", *words)))


def _unpack(data: bytes) -> tuple[int, ...]:
    if len(data) % 4:
        raise ValueError(f"{len(data)} bytes are no row of u32")
    return struct.unpack(f"={len(data) // 4}I", data)
