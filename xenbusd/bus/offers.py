"""A frontend's offer of rings: which keys of its directory name them. The backend reads an offer, the frontend writes
it, both by the ring formats that the driver declares.

Where the keys are:

* `multi-queue-num-queues` absent or 1: the keys of the one queue are at the top. Otherwise those of queue N are in
  `queue-<N>/`; `ring-page-order`, which holds for every ring, stays at the top (T28).
* For each ring of a queue, the grant reference is in the key that the format's `ref` names: `ring-ref` if
  `ring-page-order` is absent; if it is present, even as 0, `ring-ref0`, `ring-ref1`, ...
* Each ring has a port of its own, in the key that the format's `port` names (`event-channel-tx`, `event-channel-rx`);
  if any of these is absent, all rings of the queue share one port, in `event-channel`.
* The keys of a ring beside the queues, such as a control ring, are at the top: its `ref` (`ctrl-ring-ref`), if the ring
  is offered at all; its `port` (`event-channel-ctrl`) must then be there as well.

Source: Linux, drivers/block/xen-blkback/xenbus.c (connect_ring, read_per_ring_refs), drivers/net/xen-netback/xenbus.c
(connect_data_rings, connect_ctrl_ring); xen/include/public/io/netif.h.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xenbusd.bus.nodes import Value, gref, port, unsigned
from xenbusd.bus.otherend import Otherend
from xenbusd.errors import NodeValueError
from xenbusd.ids import Gref, Port
from xenbusd.ring.layout import SHARED_PORT, Raw, RingFormat

AnyFormat = RingFormat[Any, Any]

NUM_QUEUES = "multi-queue-num-queues"
PAGE_ORDER = "ring-page-order"
OPTIONAL_KEYS = (NUM_QUEUES, PAGE_ORDER)
"""Keys of an offer whose absence has a meaning: one left over from an earlier offer would falsify this one."""

PAGE: RingFormat[Raw, Raw] = RingFormat(slot_bytes=1, request=Raw, response=Raw)
"""The keys of a page that is no ring: those of a ring of one page."""

_QUEUES = unsigned(0xFFFF, "number of queues")


@dataclass(frozen=True)
class RingOffer:
    """One ring: its pages, and the frontend's port."""

    grefs: Sequence[Gref]
    port: Port


@dataclass(frozen=True)
class QueueOffer:
    """The rings of one queue, in the order of the driver's formats."""

    rings: Sequence[RingOffer]
    is_shared: bool = False
    """All rings share one port."""


@dataclass(frozen=True)
class Offer:
    """All that a frontend offers."""

    queues: Sequence[QueueOffer]
    beside: Sequence[RingOffer | None] = ()
    """Rings beside the queues; None for one that is not offered."""


def one_ring(grefs: Sequence[Gref], port: Port) -> Offer:
    """The offer of one queue with one ring."""
    return Offer([QueueOffer([RingOffer(grefs, port)])])


async def read_offer(
    otherend: Otherend, formats: Sequence[AnyFormat], max_queues: int, beside: Sequence[AnyFormat] = ()
) -> Offer:
    """Read a frontend's offer.

    Args:
        otherend: the frontend.
        formats: the formats of the rings of each queue.
        max_queues: how many queues the backend has advertised.
        beside: the formats of rings beside the queues.

    Raises:
        NodeValueError: a key is missing or bad, or the order or the number of queues is above the advertised limit.
    """
    queues = await otherend.read(NUM_QUEUES, _QUEUES, default=1)
    if not 1 <= queues <= max_queues:
        raise NodeValueError(f"{otherend.path}/{NUM_QUEUES} is {queues}; it must be 1 to {max_queues}")
    max_order = min(format.max_order for format in formats)
    order = await otherend.read(PAGE_ORDER, unsigned(max_order, "ring page order"), default=-1)
    prefixes = [""] if queues == 1 else [f"queue-{number}/" for number in range(queues)]
    return Offer(
        [await _read_queue(otherend, prefix, formats, order) for prefix in prefixes],
        [await _read_beside(otherend, format) for format in beside],
    )


async def _read_queue(otherend: Otherend, prefix: str, formats: Sequence[AnyFormat], order: int) -> QueueOffer:
    grefs = [
        await asyncio.gather(*(otherend.read(prefix + name, gref) for name in ref_names(format, order)))
        for format in formats
    ]
    ports, is_shared = await _read_ports(otherend, prefix, formats)
    rings = [
        RingOffer([Gref(number) for number in numbers], Port(own)) for numbers, own in zip(grefs, ports, strict=True)
    ]
    return QueueOffer(rings, is_shared)


async def _read_ports(otherend: Otherend, prefix: str, formats: Sequence[AnyFormat]) -> tuple[list[int], bool]:
    """The port of each ring, and whether that is one port for all."""
    keys = [format.port for format in formats]
    if any(key != SHARED_PORT for key in keys):
        own = [await otherend.read(prefix + key, port, default=-1) for key in keys]
        if all(number >= 0 for number in own):
            return own, False
    shared = await otherend.read(prefix + SHARED_PORT, port)
    return [shared] * len(formats), len(formats) > 1


async def _read_beside(otherend: Otherend, format: AnyFormat) -> RingOffer | None:
    number = await otherend.read(format.ref, gref, default=-1)
    if number < 0:
        return None
    return RingOffer([Gref(number)], Port(await otherend.read(format.port, port)))


def ref_names(format: AnyFormat, order: int | None) -> list[str]:
    """The keys of a ring's grant references.

    Args:
        format: the ring's format.
        order: log2 of its pages; negative or None: one page in the old spelling, without a number.
    """
    if order is None or order < 0:
        return [format.ref]
    return [f"{format.ref}{page}" for page in range(1 << order)]


def offer_keys(
    formats: Sequence[AnyFormat], order: int | None, beside: Sequence[AnyFormat], offer: Offer
) -> dict[str, Value]:
    """The keys of an offer with their values, as `read_offer` reads them."""
    keys: dict[str, Value] = {}
    if len(offer.queues) > 1:
        keys[NUM_QUEUES] = len(offer.queues)
    if order is not None:
        keys[PAGE_ORDER] = order
    for number, queue in enumerate(offer.queues):
        prefix = f"queue-{number}/" if len(offer.queues) > 1 else ""
        for format, ring in zip(formats, queue.rings, strict=True):
            keys[prefix + (SHARED_PORT if queue.is_shared else format.port)] = ring.port
            keys.update(zip((prefix + name for name in ref_names(format, order)), ring.grefs, strict=True))
    for format, extra in zip(beside, offer.beside, strict=True):
        if extra is not None:
            keys[format.ref], keys[format.port] = extra.grefs[0], extra.port
    return keys


def keys_to_remove(
    formats: Sequence[AnyFormat], beside: Sequence[AnyFormat], offer: Offer, offered: Mapping[str, Value]
) -> list[str]:
    """The keys whose absence has a meaning and that this offer does not have: an earlier offer may have left them."""
    several = len(offer.queues) > 1
    prefixes = [f"queue-{number}/" if several else "" for number in range(len(offer.queues))]
    keys = [
        *OPTIONAL_KEYS,
        *(prefix + format.port for prefix in prefixes for format in formats if format.port != SHARED_PORT),
        *(key for format in beside for key in (format.ref, format.port)),
    ]
    return [key for key in keys if key not in offered]
