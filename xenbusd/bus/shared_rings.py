"""The rings of a frontend: pages shared with the backend's domain, and ports that it may bind."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack

from xenbusd.bus.channel import QueueChannels
from xenbusd.bus.counters import Tally
from xenbusd.bus.frontend_life import FrontendLife
from xenbusd.bus.handle import Handle
from xenbusd.bus.link import AnyFrontLink, FrontLink, Rings
from xenbusd.bus.offers import AnyFormat, Offer, QueueOffer, RingOffer
from xenbusd.ring.shared import FrontRing


class SharedRings:
    """All rings of one connection.

    Args:
        dev: the driver's handle, for the links.
        device: the device itself.
        stack: undoes everything; a ring's port is closed before its pages are taken back.
    """

    def __init__(self, dev: Handle, device: FrontendLife, stack: ExitStack) -> None:
        self._dev = dev
        self._device = device
        self._stack = stack

    def share(
        self,
        formats: Sequence[AnyFormat],
        queues: int,
        order: int,
        beside: Sequence[AnyFormat],
        left_out: Collection[AnyFormat],
        *,
        split_ports: bool,
    ) -> tuple[Rings[AnyFrontLink], Offer]:
        """Make all rings and their ports.

        Args:
            formats: the formats of the rings of each queue.
            queues: the number of queues.
            order: log2 of the pages of each ring of a queue.
            beside: the formats of rings beside the queues.
            left_out: those of `beside` that are not made.
            split_ports: each ring of a queue has a port of its own; otherwise all share one.

        Raises:
            GrantError, EventChannelError: pages or ports cannot be allocated for all of them.
        """
        is_shared = len(formats) > 1 and not split_ports
        links: list[tuple[AnyFrontLink, ...]] = []
        offers: list[QueueOffer] = []
        counters = self._device.counters
        for number in range(queues):
            queue: list[tuple[AnyFrontLink, RingOffer]] = []
            channels = self._channels(counters.queue(number), is_shared=is_shared)
            for format in formats:
                queue.append(self._share_ring(format, order, channels))
            links.append(tuple(link for link, _ in queue))
            offers.append(QueueOffer([offer for _, offer in queue], is_shared))
        extra = [
            None if format in left_out else self._share_ring(format, 0, self._channels(counters.own))
            for format in beside
        ]
        names = [format.name for format in formats], [format.name for format in beside]
        rings = Rings(links, [each and each[0] for each in extra], *names)
        return rings, Offer(offers, [each and each[1] for each in extra])

    def _channels(self, tally: Tally, *, is_shared: bool = False) -> QueueChannels:
        return QueueChannels(self._device.services.ports, tally, self._device.fail, is_shared=is_shared)

    def _share_ring(self, format: AnyFormat, order: int, channels: QueueChannels) -> tuple[AnyFrontLink, RingOffer]:
        device = self._device
        host, domid = device.services.host, device.otherend.domid
        share = host.grants.share(domid, 1 << order)
        try:
            port = channels.port(lambda: host.events.alloc_unbound(domid))
        except BaseException:
            share.unshare()
            raise
        ring = FrontRing(share.view, format.slot_bytes)
        link = FrontLink(self._dev, device, ring, channels.channel(port), host.grants, format, share.unshare)
        self._stack.callback(link.close)
        return link, RingOffer(share.grefs, port)
