"""A guest's TPM, for as long as its device exists: a home, and a swtpm that is started again if it dies."""

from __future__ import annotations

import time

from xenbusd.api import BackendDevice, ResourceError, choice, text
from xenbusd_vtpm.home import Home
from xenbusd_vtpm.protocol import LOCALITY_MAX, TPM_2_0, VERSIONS, Version, is_whole
from xenbusd_vtpm.settings import STATE_DIR, parse_settings, parse_uuid
from xenbusd_vtpm.swtpm import Swtpm, SwtpmLost

LOCK_S = 10.0
"""How long to wait for the lock that the previous daemon's swtpm may hold until it has ended."""

RESTART_PAUSE_S = 1.0
"""After swtpm could not be restarted, commands fail for this long until the next attempt."""


class Tpm:
    """Carries out TPM commands, each at most once.

    Args:
        dev: the device that the TPM belongs to.
    """

    def __init__(self, dev: BackendDevice) -> None:
        self._dev = dev
        self._home: Home | None = None
        """Its home, open while the TPM is on."""
        self._swtpm: Swtpm | None = None
        self._not_before = 0.0
        self.version: Version = TPM_2_0
        """The TPM's version, valid once it was switched on."""

    async def switch_on(self, *, resume: bool) -> None:
        """Switch the TPM on; make it first if it does not exist. Idempotent.

        Args:
            resume: the guest uses it already: start from the last swtpm's state, not as after power-on.

        Raises:
            UsageError: the device has no valid uuid, or the configuration is wrong.
            ResourceError: see `Home` and `Swtpm`.
            OSError: its folder cannot be made.
        """
        if self._home is not None:
            return
        dev = self._dev
        settings = parse_settings(dev.options, default_state_dir(dev))
        uuid = parse_uuid(await dev.own.read("uuid", text))  # the guest cannot write the backend's directory
        home = Home(settings, uuid)
        asked = await dev.own.read("tpm-version", choice("", *VERSIONS), default="")
        await home.open(LOCK_S)
        try:
            self.version = await home.prepare(asked or None)
            self._swtpm = await self._start(home, resume=resume)
        except BaseException:
            home.close()
            raise
        self._home = home

    async def _start(self, home: Home, *, resume: bool) -> Swtpm:
        swtpm = await Swtpm.start(home, self.version, resume=resume)
        self._dev.log.info("tpm.started", uuid=home.uuid, version=self.version.name, pid=swtpm.pid)
        return swtpm

    async def execute(self, command: bytes, locality: int) -> bytes:
        """Carry out a command, or refuse it. It is given to swtpm at most once, even if swtpm dies under it.

        Args:
            command: unchecked bytes from the guest.
            locality: likewise from the guest.

        Returns:
            A whole response.
        """
        version = self.version
        if not is_whole(command):
            return version.refusal(version.bad_size)
        if locality > LOCALITY_MAX:
            return version.refusal(version.bad_locality)
        try:
            if swtpm := await self._alive():
                return await swtpm.execute(command, locality)
        except (SwtpmLost, ResourceError) as error:
            self._dev.log.error("tpm.lost", error=str(error))
        self._dev.counters["errors"] += 1
        return version.refusal(version.failure)

    async def _alive(self) -> Swtpm | None:
        """Return a running swtpm, a new one with the same state if the last one has ended; None if none can run now."""
        if self._swtpm is not None and self._swtpm.alive:
            return self._swtpm
        if self._home is None or time.monotonic() < self._not_before:
            return None
        self._not_before = time.monotonic() + RESTART_PAUSE_S
        if self._swtpm is not None:
            await self._swtpm.kill()
            self._swtpm = None
        self._swtpm = await self._start(self._home, resume=True)
        self._not_before = 0.0
        return self._swtpm

    def cancel(self) -> None:
        """Ask the TPM to abort the command under way."""
        if self._swtpm is not None:
            self._swtpm.cancel()

    async def close(self) -> None:
        """Switch the TPM off because the device is gone. If instead the daemon stops, only end swtpm and keep the
        volatile state: the next daemon resumes the TPM. Idempotent."""
        swtpm, self._swtpm = self._swtpm, None
        if swtpm is not None:
            await (swtpm.kill() if self._dev.stopping else swtpm.end())
        if self._home is not None:
            if not self._dev.stopping:
                self._home.forget_volatile()
            self._home.close()
            self._home = None


def default_state_dir(dev: BackendDevice) -> str:
    """Return the folder of TPMs where the configuration names none; for a simulated host it is in the run directory."""
    return dev.state_dir(STATE_DIR)
