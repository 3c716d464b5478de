"""The rings of a backend: a frontend's offer, mapped and bound, each ring with its journal begun or adopted.

Nothing here is visible to the frontend: the store is written later, and only the driver puts answers into a ring. The
stack that is handed in undoes each step that succeeds.

Decision: D8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.channel import QueueChannels
from xenbusd.bus.counters import Tally
from xenbusd.bus.handle import Handle
from xenbusd.bus.handover import Handover, JournalPolicy, identity, journal_path
from xenbusd.bus.link import AnyBackLink, BackLink, Rings
from xenbusd.bus.offers import AnyFormat, Offer, QueueOffer, RingOffer
from xenbusd.ids import Port
from xenbusd.ring.journal import Journal
from xenbusd.ring.shared import BackRing


class MappedRings:
    """All rings of one connection.

    Args:
        dev: the driver's handle, for the links.
        device: the device itself.
        journal: the driver's promise about its responses, for each ring by itself.
        stack: undoes everything; a ring's port is closed before the ring is unmapped.
    """

    def __init__(self, dev: Handle, device: BackendLife, journal: JournalPolicy, stack: ExitStack) -> None:
        self._dev = dev
        self._device = device
        self._policy = journal
        self._stack = stack
        self._opened: list[tuple[AnyBackLink, Handover]] = []

    @property
    def links(self) -> list[AnyBackLink]:
        """All links, in the order in which they were mapped, which is that of their journals' numbers."""
        return [link for link, _ in self._opened]

    async def map(self, offer: Offer, formats: Sequence[AnyFormat], beside: Sequence[AnyFormat]) -> Rings[AnyBackLink]:
        """Map all rings of an offer, or none.

        Raises:
            GrantError, EventChannelError: Xen refuses the pages or ports that were offered.
            ConnectionEnded: the previous daemon's rings cannot be adopted.
        Blocks: mapping runs in a thread, since it can sleep in the kernel (T66).
        """
        counters = self._device.counters
        queues = [
            tuple(await self._map_queue(formats, queue, counters.queue(number)))
            for number, queue in enumerate(offer.queues)
        ]
        extra = [
            None if ring is None else await self._map_ring(format, ring, self._channels(counters.own))
            for format, ring in zip(beside, offer.beside, strict=True)
        ]
        names = [format.name for format in formats], [format.name for format in beside]
        return Rings(queues, extra, *names)

    async def _map_queue(self, formats: Sequence[AnyFormat], queue: QueueOffer, tally: Tally) -> list[AnyBackLink]:
        channels = self._channels(tally, is_shared=queue.is_shared)
        return [await self._map_ring(format, ring, channels) for format, ring in zip(formats, queue.rings, strict=True)]

    def _channels(self, tally: Tally, *, is_shared: bool = False) -> QueueChannels:
        return QueueChannels(self._device.services.ports, tally, self._device.fail, is_shared=is_shared)

    async def _map_ring(self, format: AnyFormat, offer: RingOffer, channels: QueueChannels) -> AnyBackLink:
        device = self._device
        host, domid = device.services.host, device.otherend.domid
        handover = Handover(journal_path(device.services.run_dir, device.id.log_name, len(self._opened)))
        self._stack.callback(handover.close)
        mapping = await asyncio.to_thread(host.grants.map, domid, offer.grefs)
        with ExitStack() as undo:
            undo.callback(mapping.unmap)
            port = channels.port(lambda: self._bind(offer.port, undo))
            adopted = device.connection.adopted
            journal = self._journal(handover, identity(offer.grefs, offer.port), len(offer.grefs), format.slot_bytes)
            ring = BackRing(mapping.view, format.slot_bytes, attach=adopted, journal=journal)
            undo.pop_all()
        link = BackLink(self._dev, device, ring, channels.channel(port), host.grants, format, mapping.unmap)
        self._stack.callback(link.close)
        self._opened.append((link, handover))
        return link

    def _bind(self, otherend_port: Port, undo: ExitStack) -> Port:
        host = self._device.services.host
        port = host.events.bind_interdomain(self._device.otherend.domid, otherend_port)
        undo.callback(host.events.unbind, port)
        return port

    def _journal(self, handover: Handover, ring_id: int, pages: int, slot_bytes: int) -> Journal:
        """Begin the ring's journal, or adopt the previous daemon's; log why the device must close instead."""
        if not self._device.connection.adopted:
            return handover.begin(ring_id, pages, slot_bytes, self._policy)
        with self._device.adopting():
            return handover.adopt(ring_id, pages, slot_bytes)

    def mark_clean(self) -> None:
        """Mark each ring clean in which every request taken was answered."""
        for link, handover in self._opened:
            if not link.ring.unanswered:
                handover.mark_clean()
