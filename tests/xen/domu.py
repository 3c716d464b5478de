"""A guest that carries out a test's commands, one at a time, on its console."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.xen.dom0 import Guest, run, until
from tests.xen.xl import Said, log_of, xl

READY = "told: ready"


@dataclass(frozen=True)
class Told:
    """A command that was sent to a guest."""

    number: int
    since: int
    """Where in the console's text its answer may begin."""


class Domu(Guest):
    """A guest that runs the job `told`: it has blkfront's module, and loads it at the command `load xen-blkfront`."""

    def __init__(self, name: str, disks: list[str] | None = None, *, on_reboot: str = "destroy") -> None:
        super().__init__(name, "told", disks or [], memory_mb=256, on_reboot=on_reboot)
        self._count = 0
        self._terminal: Path | None = None

    def start(self) -> Said:
        """Have xl make it, and return what xl said once the guest is ready for commands."""
        lives = self.console.count(READY)
        said = xl("-T", "create", self.config)
        self.wait_ready(lives + 1)
        return said

    def wait_ready(self, lives: int, timeout_s: float = 120.0) -> None:
        """Wait until it has become ready so many times; it may have another number since."""
        until(lambda: True if self.console.count(READY) >= lives else None, f"life {lives} of {self.name}", timeout_s)
        self.find()

    def find(self) -> None:
        """Find its console anew, after it has got another number."""
        self._terminal = Path(run("xenstore-read", f"/local/domain/{self.domid}/console/tty").strip())

    def tell(self, command: str) -> Told:
        """Start a command, one line for its shell."""
        assert self._terminal is not None
        self._count += 1
        told = Told(self._count, len(self.console))
        terminal = os.open(self._terminal, os.O_WRONLY | os.O_NOCTTY)
        try:
            os.write(terminal, f"{told.number} {command}\n".encode())
        finally:
            os.close(terminal)
        return told

    def answer(self, told: Told, *, timeout_s: float = 60.0, fails: bool = False) -> str:
        """Wait until the command has ended, and return its output. It must succeed; or fail."""

        def look() -> re.Match[str] | None:
            return re.search(rf"^= {told.number} (\d+)$", self.console[told.since :], re.M)

        found = until(look, f"answer to command {told.number} on the console: {self.console[told.since :]}", timeout_s)
        printed = self.console[told.since :][: found.start()].strip()
        assert (found[1] != "0") == fails, f"command {told.number} ended with {found[1]}: {printed}"
        return printed

    def do(self, command: str, *, timeout_s: float = 60.0, fails: bool = False) -> str:
        """Run a command, and return its output."""
        return self.answer(self.tell(command), timeout_s=timeout_s, fails=fails)

    def log(self) -> Said:
        """What the xl that looks after it has said."""
        return log_of(self.name)
