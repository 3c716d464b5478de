"""Every driver pair of the tree is put through what `xenbusd.testing.conformance` demands of any."""

from __future__ import annotations

from pathlib import Path

from tests.machine.echo import say
from xenbusd.bus.paths import DeviceId
from xenbusd.testing import Process
from xenbusd.testing.conformance import PairConformance
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend

DRIVERS = Path(__file__).parents[2] / "drivers"


class TestEcho(PairConformance):
    """The template."""

    backend, frontend = EchoBackend, EchoFrontend
    readme = DRIVERS / "xenbusd_echo/README.md"

    async def use(self, guest: Process, id: DeviceId) -> None:
        """Send a line."""
        assert await say(guest, id, b"hello") == [b"HELLO"]
