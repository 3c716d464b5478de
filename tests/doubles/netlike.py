"""A pair whose rings are offered as a network pair's are: queues of a tx and an rx ring, on split ports or on one, and
a control ring beside them. Its backend has a step of its own before the hotplug script."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from xenbusd.api import (
    Backend,
    BackendDevice,
    BackLink,
    Frontend,
    FrontendDevice,
    FrontLink,
    InOrder,
    RingFormat,
    Rings,
)
from xenbusd_echo.protocol import SLOT, Line

AnyBackLink = BackLink[Line, Line]
AnyFrontLink = FrontLink[Line, Line]

TX = RingFormat(SLOT.size, Line, Line, ref="tx-ring-ref", port="event-channel-tx")
RX = RingFormat(SLOT.size, Line, Line, ref="rx-ring-ref", port="event-channel-rx")
CTRL = RingFormat(SLOT.size, Line, Line, ref="ctrl-ring-ref", port="event-channel-ctrl")


class NetlikeBackend(Backend, device_class="netlike"):
    """Answer each line with the name of its ring before it."""

    made: ClassVar[set[str]] = set()
    """The interfaces that the step before the script has made."""

    async def run(self, dev: BackendDevice) -> None:
        """Make an interface before the script runs, then serve all rings by drains."""
        await dev.advertise(run_script=False, multi_queue_max_queues=2, feature_split_event_channels=1)
        name = f"nl{dev.otherend.domid}.{dev.id.devid}"
        if not dev.adopted:
            self.made.add(name)
        await dev.run_script(vif=name)
        async with dev.connect_rings((TX, RX), max_queues=2, beside=(CTRL,), journal=InOrder()) as rings:
            for number, (tx, rx) in enumerate(rings.queues):
                self.serve(tx, b"tx%d" % number)
                self.serve(rx, b"rx%d" % number)
            if rings.beside[0] is not None:
                self.serve(rings.beside[0], b"ctrl")
            await dev.until_ended()

    @staticmethod
    def serve(link: AnyBackLink, name: bytes) -> None:
        """Answer what comes through one ring."""

        def drain() -> bool:
            run, count = link.ring.take()
            for start in range(0, len(run), SLOT.size):
                line = Line.unpack(run[start : start + SLOT.size])
                link.ring.put(replace(line, text=name + b":" + line.text).pack())
            link.counters["requests"] += count
            link.publish()
            return count > 0

        link.start(drain)


class NetlikeFrontend(Frontend, device_class="netlike"):
    """Offer what the options say: `queues`, `split`, `control`."""

    rings: Rings[AnyFrontLink]

    async def run(self, dev: FrontendDevice) -> None:
        """Let the test use the rings."""
        await dev.backend_ready()
        offering = dev.offer_rings(
            (TX, RX),
            queues=dev.options["queues"],
            split_ports=dev.options["split"],
            beside=(CTRL,),
            left_out=() if dev.options["control"] else (CTRL,),
        )
        async with offering as rings:
            for link in [*(link for queue in rings.queues for link in queue), *rings.beside]:
                if link is not None:
                    link.start(link.answer)
            NetlikeFrontend.rings = rings
            await dev.connected()
            await dev.until_ended()
