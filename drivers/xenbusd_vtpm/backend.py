"""The vtpm backend: a software TPM for each device. This package's README lists the keys."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from xenbusd.api import (
    Backend,
    BackendDevice,
    Devid,
    Directories,
    Finding,
    OtherendError,
    Seen,
    State,
    boolean,
)
from xenbusd_vtpm.server import PageServer
from xenbusd_vtpm.toolstack import directories
from xenbusd_vtpm.tpm import Tpm


class VtpmBackend(Backend, device_class="vtpm"):
    """Serve one TPM. It is switched on at the first connection, and off when the device is gone: a frontend that
    reconnects, as after kexec, finds it as it was."""

    def __init__(self) -> None:
        self._tpm: Tpm | None = None

    @classmethod
    def directories(cls, devid: Devid, parameters: Mapping[str, str]) -> Directories:
        """Take the parameters of `xenbusd_vtpm.toolstack.PARAMETERS`: uuid= and version=."""
        return directories(devid, parameters)

    async def run(self, dev: BackendDevice) -> None:
        """Serve one connection."""
        await dev.advertise(feature_protocol_v2=1)
        if not await dev.otherend.read("feature-protocol-v2", boolean, default=False):
            raise OtherendError("the frontend offers version 1 of the vtpm protocol only; version 2 is needed")
        try:
            async with dev.connect_page() as link:  # before the TPM starts: the frontend may wait already (T49)
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
                await self.close()  # Closed means that the TPM is off, and may be attached elsewhere

    async def _switch_on(self, dev: BackendDevice, tpm: Tpm) -> None:
        """Switch the TPM on if it is off. If the toolstack closes the device meanwhile, the TPM stays off, and every
        command fails: a frontend that waits for an answer gets one, and can close.

        Raises:
            UsageError, ResourceError: the TPM cannot be used.
            ConnectionEnded: the device has gone meanwhile.
        """

        def closes(seen: Seen) -> bool | None:
            dev.check(seen)
            return True if seen.own is State.CLOSING else None

        switching = asyncio.create_task(tpm.switch_on(resume=dev.adopted), name="vtpm start")
        closing = asyncio.create_task(dev.until(closes, Finding("the TPM", "has not started")), name="vtpm end")
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
        """Switch the TPM off because the device is gone; or only end swtpm because the daemon stops: the next daemon
        resumes the TPM."""
        if self._tpm is not None:
            await asyncio.shield(self._tpm.close())
            self._tpm = None
