"""Every driver pair of the tree passes `xenbusd.testing.conformance`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tests.doubles.echo import say
from tests.doubles.nbd_client import NbdClient
from xenbusd.bus.paths import DeviceId
from xenbusd.ids import Devid
from xenbusd.testing import Process
from xenbusd.testing.conformance import PairConformance
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend
from xenbusd_vbd.backend import VbdBackend
from xenbusd_vbd.frontend import VbdFrontend
from xenbusd_vbd.nbd import wire

DRIVERS = Path(__file__).parents[3] / "drivers"

PATIENCE_S = 2.0
"""How long a use may take before it counts as one that did not work, and is tried again where that is allowed."""


class TestEcho(PairConformance):
    """The template."""

    backend, frontend = EchoBackend, EchoFrontend
    readme = DRIVERS / "xenbusd_echo/README.md"

    async def use(self, guest: Process, id: DeviceId) -> None:
        """Send a line."""
        assert await say(guest, id, b"hello") == [b"HELLO"]


class TestVbd(PairConformance):
    """Disks."""

    backend, frontend = VbdBackend, VbdFrontend
    readme = DRIVERS / "xenbusd_vbd/README.md"
    options = {"vbd": {"nbd_device": False}}  # noqa: RUF012
    sometimes = frozenset(
        [
            *("script", "physical-device-path", "hotplug-status"),
            *("bandwidth", "iops", "pause", "paused"),
            *("ring-page-order", "ring-ref0", "multi-queue-num-queues"),
        ]
    )

    def devid(self, number: int) -> Devid:
        """xvda, xvdb, ..., and on from there by the numbers of the extended range."""
        return Devid(202 << 8 | number << 4) if number < 16 else Devid(1 << 28 | number << 8)

    def parameters(self, folder: Path) -> Mapping[str, str]:
        """A disk of 64 KiB."""
        image = folder / "disk.img"
        if not image.exists():
            image.write_bytes(bytes(1 << 16))
        return {"target": str(image), "script": ""}

    async def use(self, guest: Process, id: DeviceId) -> None:
        """Write a sector, and read it."""
        async with asyncio.timeout(PATIENCE_S):
            client = await NbdClient.connect(guest.run_path(id, "sock"))
            try:
                data = str(id).encode().ljust(512, b".")
                assert (await client.ask(wire.Command.WRITE, 1, 512, data=data)).error == 0
                assert (await client.ask(wire.Command.READ, 2, 512, 512)).data == data
            finally:
                await client.close()
