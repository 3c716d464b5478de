"""A guest's TPM for as long as its device is there: a home, and a swtpm that is started again when it has died."""

from __future__ import annotations

import time

from xenbusd.api import BackendDevice, choice, text
from xenbusd_vtpm.home import Home, TpmError
from xenbusd_vtpm.protocol import LOCALITY_MAX, TPM_2_0, VERSIONS, Version, is_whole
from xenbusd_vtpm.settings import STATE_DIR, parse_settings, parse_uuid
from xenbusd_vtpm.swtpm import Swtpm, SwtpmLost

LOCK_S = 10.0
"""How long the swtpm of a process before us may take to end."""

RESTART_PAUSE_S = 1.0
"""After a start that failed, commands fail for this long before another is tried."""


class Tpm:
    """Does TPM commands, each at most once.

    Args:
        dev: whose it is.
    """

    def __init__(self, dev: BackendDevice) -> None:
        self._dev = dev
        self._home: Home | None = None
        """Open while the TPM is on."""
        self._swtpm: Swtpm | None = None
        self._not_before = 0.0
        self.version: Version = TPM_2_0
        """Known once it was switched on."""

    async def switch_on(self, *, go_on: bool) -> None:
        """Find the TPM, make it if it is not there, and switch it on. Nothing to do if it is on.

        Args:
            go_on: the guest has used it already: begin where the last swtpm stopped, not as after power-on.

        Raises:
            UsageError: there is no such uuid, or a mistake in the configuration.
            TpmError: see `Home` and `Swtpm`.
            OSError: its folder cannot be made.
        """
        if self._home is not None:
            return
        dev = self._dev
        settings = parse_settings(dev.options, default_state_dir(dev))
        home = Home(settings, parse_uuid(await dev.own.read("uuid", text)))  # only our directory is trusted to say it
        asked = await dev.own.read("tpm-version", choice("", *VERSIONS), default="")
        await home.open(LOCK_S)
        try:
            self.version = await home.prepare(asked or None)
            self._swtpm = await self._start(home, go_on=go_on)
        except BaseException:
            home.close()
            raise
        self._home = home

    async def _start(self, home: Home, *, go_on: bool) -> Swtpm:
        swtpm = await Swtpm.start(home, self.version, go_on=go_on)
        self._dev.log.info("tpm.started", uuid=home.uuid, version=self.version.name, pid=swtpm.pid)
        return swtpm

    async def execute(self, command: bytes, locality: int) -> bytes:
        """Do a command, or refuse it. It is given to swtpm once, and never again, whatever comes of it.

        Args:
            command: whatever the guest wrote.
            locality: likewise.

        Returns:
            A response, whole.
        """
        version = self.version
        if not is_whole(command):
            return version.refusal(version.bad_size)
        if locality > LOCALITY_MAX:
            return version.refusal(version.bad_locality)
        try:
            if swtpm := await self._alive():
                return await swtpm.execute(command, locality)
        except (SwtpmLost, TpmError) as error:
            self._dev.log.error("tpm.lost", error=str(error))
        self._dev.counters["errors"] += 1
        return version.refusal(version.failure)

    async def _alive(self) -> Swtpm | None:
        """The swtpm; a new one, in the state of the last, if that has ended; None if there cannot be one now."""
        if self._swtpm is not None and self._swtpm.alive:
            return self._swtpm
        if self._home is None or time.monotonic() < self._not_before:
            return None
        self._not_before = time.monotonic() + RESTART_PAUSE_S
        if self._swtpm is not None:
            await self._swtpm.kill()
            self._swtpm = None
        self._swtpm = await self._start(self._home, go_on=True)
        self._not_before = 0.0
        return self._swtpm

    def cancel(self) -> None:
        """Ask for an early end of the command under way."""
        if self._swtpm is not None:
            self._swtpm.cancel()

    async def close(self) -> None:
        """Switch it off: the device is gone. If the daemon stops, another process goes on with it as it is; then only
        swtpm ends. Idempotent."""
        swtpm, self._swtpm = self._swtpm, None
        if swtpm is not None:
            await (swtpm.kill() if self._dev.stopping else swtpm.end())
        if self._home is not None:
            if not self._dev.stopping:
                self._home.forget_volatile()
            self._home.close()
            self._home = None


def default_state_dir(dev: BackendDevice) -> str:
    """Where TPMs are unless the configuration says it: on a simulated host, beside what else belongs to that host."""
    services = dev.services
    return STATE_DIR if services.host.name == "xen" else f"{services.run_dir}/vtpm"
