"""The vtpm backend: a software TPM of its own for each device. The keys are in this package's README."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from xenbusd.api import (
    Backend,
    BackendDevice,
    Devid,
    Directories,
    OtherendError,
    Seen,
    State,
    boolean,
    connect_page,
)
from xenbusd_vtpm.server import PageServer
from xenbusd_vtpm.toolstack import directories
from xenbusd_vtpm.tpm import Tpm


class VtpmBackend(Backend, device_class="vtpm"):
    """Serve one TPM. It is switched on at the first connection, and off when the device is gone: a frontend that comes
    back, as after kexec, finds it as it was."""

    def __init__(self) -> None:
        self._tpm: Tpm | None = None

    @classmethod
    def directories(cls, devid: Devid, parameters: Mapping[str, str]) -> Directories:
        """Take uuid= and version=, as in `xenbusd_vtpm.toolstack.PARAMETERS`."""
        return directories(devid, parameters)

    async def run(self, dev: BackendDevice) -> None:
        """Live through one connection."""
        await dev.advertise(feature_protocol_v2=1)
        if not await dev.otherend.read("feature-protocol-v2", boolean, default=False):
            raise OtherendError("the frontend knows only the first vtpm protocol, which nobody serves any more")
        try:
            async with connect_page(dev) as link:  # first of all: the frontend may wait in it already (T49)
                tpm = self._tpm = self._tpm or Tpm(dev)
                server = PageServer(link, tpm, dev.otherend.domid)
                try:
                    await self._switch_on(dev, tpm)
                    await link.connected(tpm_version=tpm.version.name)
                    await link.serve(server.drain)
                finally:
                    await server.finish()
        finally:
            if not dev.seen.online:
                await self.close()  # Closed means that it is off, and may be attached elsewhere

    async def _switch_on(self, dev: BackendDevice, tpm: Tpm) -> None:
        """Switch the TPM on if it is off. If the toolstack closes the device meanwhile, it stays off: all commands fail
        then, so that a frontend which waits for an answer can go on, and close.

        Raises:
            UsageError, TpmError: it cannot be had.
            ConnectionEnded: the device has gone meanwhile.
        """

        def closes(seen: Seen) -> bool | None:
            dev.check(seen)
            return True if seen.own is State.CLOSING else None

        switching = asyncio.create_task(tpm.switch_on(go_on=dev.adopted), name="vtpm start")
        closing = asyncio.create_task(dev.until(closes, "its TPM to start"), name="vtpm end")
        try:
            await asyncio.wait({switching, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (switching, closing):
                task.cancel()
            outcomes = await asyncio.gather(switching, closing, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def close(self) -> None:
        """The device is gone, and its TPM is switched off; or the daemon stops, and the next one goes on with it."""
        if self._tpm is not None:
            await asyncio.shield(self._tpm.close())
            self._tpm = None
