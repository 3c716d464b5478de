"""The arithmetic of a shared ring. Pure: no memory is touched here.

Indices are free-running u32 counters; only their differences mean anything. A slot holds a request until its
response overwrites it, so requests and responses have one stride.

Source: xen/include/public/io/ring.h (DEFINE_RING_TYPES, __RING_SIZE, RING_PUSH_*_AND_CHECK_NOTIFY).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from xenbusd.ids import PAGE_SIZE

U32 = 0xFFFFFFFF

HEADER_BYTES = 64
"""Bytes before slot 0: req_prod, req_event, rsp_prod, rsp_event, padding (struct name##_sring)."""

REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)
"""Positions of the four indices, in u32 words."""


class Slot(Protocol):
    """What a ring carries: something that turns into the bytes of a slot and back."""

    def pack(self) -> bytes:
        """Return the slot's bytes, padding included and zeroed."""
        ...

    @classmethod
    def unpack(cls, slot: bytes) -> Self:
        """Parse a private copy of a slot; raise ValueError if it cannot be one."""
        ...


class Raw(bytes):
    """A slot as it is, for a driver that takes whole runs of slots and parses them itself."""

    def pack(self) -> bytes:
        """Return the bytes."""
        return self

    @classmethod
    def unpack(cls, slot: bytes) -> Self:
        """Take the bytes."""
        return cls(slot)


Req = TypeVar("Req", bound=Slot)
Rsp = TypeVar("Rsp", bound=Slot)


@dataclass(frozen=True)
class RingFormat(Generic[Req, Rsp]):
    """A ring protocol: how big a slot is and what is in it.

    Args:
        slot_bytes: the size of the union of request and response.
        request: parses and packs requests.
        response: parses and packs responses.
        max_order: log2 of the most pages the backend accepts for one ring.
    """

    slot_bytes: int
    request: type[Req]
    response: type[Rsp]
    max_order: int = 0


def slots(pages: int, slot_bytes: int) -> int:
    """Return how many slots fit behind the header: rounded down to a power of two (__RING_SIZE)."""
    room = (pages * PAGE_SIZE - HEADER_BYTES) // slot_bytes
    if room < 1:
        raise ValueError(f"a slot of {slot_bytes} bytes does not fit {pages} page(s)")
    return 1 << (room.bit_length() - 1)


def ahead(producer: int, consumer: int) -> int:
    """Return how far `producer` is in front of `consumer`: 0 .. 2^32 - 1, right across the wrap."""
    return (producer - consumer) & U32


def wants_notify(new: int, old: int, event: int) -> bool:
    """Whether moving a producer index from `old` to `new` passed the `event` index at which the other end sleeps."""
    return ((new - event) & U32) < ((new - old) & U32)
