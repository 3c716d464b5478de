"""An event channel: one port of ours, and the work that its events call for.

Theory of operation. Xen masks a port as it delivers an event, so that the other end cannot interrupt us again while we
work (T61). The channel then gives each ring or page that sits on the port one turn: it drains, and says whether there
is more to do at once. If there is, all take another turn after the event loop has served other devices; if not, the
port is unmasked. An event that comes while the port is masked stays pending, and is delivered once it is unmasked.

An other end that sends events without work gets the pause that Linux gives it: the port is unmasked later, twice as
late each time, up to a limit (XSA-331, XSA-332; xen_irq_lateeoi). An error within a turn leaves the port masked for
good: a hostile peer cannot wake us again.

Several rings may sit on one channel (vif without split event channels), or each ring on one of its own. A channel knows
neither device nor store; everything here happens on the event loop, and nothing blocks.

Decision: D52.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xenbusd.bus.counters import Tally
from xenbusd.bus.ports import Ports
from xenbusd.ids import Port

SPURIOUS_MAX = 16
"""Events in a row without work, before the other end is slowed down."""

PAUSE_FIRST_S = 0.0005
PAUSE_MAX_S = 0.1


class Channel:
    """One port, and the rings or pages that are called for its events.

    Args:
        ports: delivers the events of all ports of this process.
        port: ours, bound or open; `close` closes it.
        tally: the counts of this queue; "notifications" are events sent, "throttled" pauses.
        failed: called with the error that a turn has raised.
    """

    def __init__(self, ports: Ports, port: Port, tally: Tally, failed: Callable[[Exception], None]) -> None:
        self.port = port
        self.counters = tally.counts
        self.histograms = tally.histograms
        self.masked = True
        """Whether the port will be silent until `unmask`."""
        self.is_only_active = False
        """Whether no other port of this process had an event since this port's previous turn."""
        self._ports = ports
        self._events = ports.events
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._turns: list[Callable[[], bool]] = []
        self._listeners: list[Callable[[], None]] = []
        self._spurious = 0
        self._open = True

    def notify(self) -> None:
        """Wake the other end."""
        self.counters["notifications"] += 1
        self._events.notify(self.port)

    def attach(self, turn: Callable[[], bool]) -> None:
        """Give a ring or page a turn now and after each event.

        Args:
            turn: drains; returns whether there may be more to do at once. Not a coroutine. An error that it raises
                detaches all rings and pages, and is passed to `failed`.
        """
        self._turns.append(turn)
        self._ports.attach(self.port, self._delivered)
        self._take_turns()  # the other end may have sent something before the port was bound (T49, T60)

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` at each event; the port stays masked until `unmask` is called.

        Args:
            wake: must not raise.
        """
        self._listeners.append(wake)
        self._ports.attach(self.port, self._delivered)

    def detach(self) -> None:
        """Forget all turns and listeners; a masked port stays masked. Idempotent."""
        self._turns.clear()
        self._listeners.clear()

    @property
    def is_shared(self) -> bool:
        """Whether several rings sit on the port."""
        return len(self._turns) > 1

    def _delivered(self) -> None:
        self.masked = True
        for wake in self._listeners:
            wake()
        if self._turns:
            self._take_turns()

    def _take_turns(self) -> None:
        self.is_only_active = self._ports.is_only_active(self.port)
        more = False
        try:
            for turn in self._turns:
                if turn():
                    more = True
        except Exception as error:
            self.detach()
            self._failed(error)
            return
        if more:
            self._loop.call_soon(self._take_turns)  # other devices have their turn first
        elif self.masked and self._turns:
            self.unmask()

    def found_work(self) -> None:
        """Note that the other end's events are not spurious."""
        self._spurious = 0

    def unmask(self) -> None:
        """Let the port wake us again: at once, or after a pause if too many events in a row were spurious.

        A few spurious events are normal: a ring is drained until it is empty, and the events of its last requests come
        later.
        """
        self.masked = False
        self._spurious += 1
        excess = self._spurious - SPURIOUS_MAX
        if excess <= 0:
            self._events.unmask(self.port)
        else:
            self.counters["throttled"] += 1
            self._loop.call_later(min(PAUSE_FIRST_S * 2 ** min(excess, 16), PAUSE_MAX_S), self._unmask_late)

    def _unmask_late(self) -> None:
        if self._open:
            self._events.unmask(self.port)

    def close(self) -> None:
        """Close the port. Idempotent."""
        if not self._open:
            return
        self._open = False
        self.detach()
        self._ports.detach(self.port)
        self._events.unbind(self.port)


class QueueChannels:
    """The channels of a queue's rings: one for each ring, or one that the first ring opens and the others join.

    Args:
        ports, tally, failed: as for `Channel`.
        is_shared: all rings sit on one port.
    """

    def __init__(
        self, ports: Ports, tally: Tally, failed: Callable[[Exception], None], *, is_shared: bool = False
    ) -> None:
        self._ports = ports
        self._tally = tally
        self._failed = failed
        self._is_shared = is_shared
        self._joined: Channel | None = None

    def port(self, open: Callable[[], Port]) -> Port:
        """The port of the next ring: the one that `open` returns, unless there is one to be joined."""
        return open() if self._joined is None else self._joined.port

    def channel(self, port: Port) -> Channel:
        """The channel of the next ring, on the port that `port` returned for it."""
        if self._joined is not None:
            return self._joined
        channel = Channel(self._ports, port, self._tally, self._failed)
        if self._is_shared:
            self._joined = channel
        return channel
