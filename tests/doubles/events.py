"""Ports and event channels of a test: what was done to a port, in order, and events that the test sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from xenbusd.bus.ports import Ports
from xenbusd.ids import Port


class FakeEvents:
    """Event channels that keep a list of what is asked of them.

    Args:
        acts: the list: ("unmask", 7), ...
    """

    fd = -1

    def __init__(self, acts: list[tuple[str, int]]) -> None:
        self.acts = acts
        self.due: list[Port] = []

    def pending(self) -> list[Port]:
        """The ports that the test has made pending."""
        due, self.due = self.due, []
        return due

    def notify(self, port: Port) -> None:
        """Take note."""
        self.acts.append(("notify", port))

    def unmask(self, port: Port) -> None:
        """Take note."""
        self.acts.append(("unmask", port))

    def unbind(self, port: Port) -> None:
        """Take note."""
        self.acts.append(("unbind", port))


class FakePorts(Ports):
    """Real `Ports` over `FakeEvents`."""

    def __init__(self) -> None:
        self.acts: list[tuple[str, int]] = []
        self.fake = FakeEvents(self.acts)
        super().__init__(cast("Any", self.fake))

    def deliver(self, port: int) -> None:
        """Have an event arrive now."""
        self.fake.due.append(Port(port))
        self._deliver()

    def on(self, act: str, port: int, do: Callable[[], None]) -> None:
        """Have `do` called at an act on a port: at "unmask" of 7, for example."""
        plain = getattr(self.fake, act)

        def both(called: Port) -> None:
            plain(called)
            if called == port:
                do()

        setattr(self.fake, act, both)
