"""The layout and the arithmetic of a shared ring. Pure: no memory is touched here.

Indices are free-running u32 counters; only their differences mean anything. A slot holds a request until its
response overwrites it, so requests and responses have one stride.

`ahead` and `wants_notify` are the reference for that arithmetic. `shared.py`, where a call for each request would cost
too much, spells it out in place, and tests hold it to these two.

Source: xen/include/public/io/ring.h (DEFINE_RING_TYPES, __RING_SIZE, RING_PUSH_*_AND_CHECK_NOTIFY).
Decision: D62.
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


SHARED_PORT = "event-channel"
"""The key of a port that all rings of a queue share; a queue of one ring has no other."""


class Slot(Protocol):
    """A ring's message: an object that turns into the bytes of a slot and back."""

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
    """A ring protocol: the size of a slot, its contents, and the keys of the frontend's directory that offer such a
    ring.

    Args:
        slot_bytes: the size of the union of request and response.
        request: parses and packs requests.
        response: parses and packs responses.
        max_order: log2 of the most pages the backend accepts for one ring.
        ref: the key of the ring's grant reference; for several pages, this key with the page's number appended.
        port: the key of the ring's own event channel port. Rings of one queue may share the port in `SHARED_PORT`
            instead, if the frontend offers that.
    """

    slot_bytes: int
    request: type[Req]
    response: type[Rsp]
    max_order: int = 0
    ref: str = "ring-ref"
    port: str = SHARED_PORT

    @property
    def name(self) -> str:
        """The ring's name among those of its queue: "tx" for tx-ring-ref."""
        return self.ref.removesuffix("ring-ref").rstrip("-") or "ring"


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
