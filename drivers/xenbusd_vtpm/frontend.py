"""The vtpm frontend: a TPM for this domain's kernel, where that has a TPM proxy, and else for its programs on a UNIX
socket. The keys are in this package's README."""

from __future__ import annotations

from xenbusd.api import Frontend, FrontendDevice, OtherendError, boolean, choice, offer_page
from xenbusd_vtpm import vtpmx
from xenbusd_vtpm.client import PageClient
from xenbusd_vtpm.protocol import EXTRA_PAGES, VERSIONS
from xenbusd_vtpm.settings import OPTIONS
from xenbusd_vtpm.tpm_socket import TpmSocket
from xenbusd_vtpm.vtpmx import ProxyTpm, VtpmxError


class VtpmFrontend(Frontend, device_class="vtpm"):
    """Offer one TPM. It outlives a connection, for as long as the device is there."""

    def __init__(self) -> None:
        self._client = PageClient()
        self._proxy: ProxyTpm | None = None
        self._socket: TpmSocket | None = None

    async def run(self, dev: FrontendDevice) -> None:
        """Live through one connection. As Linux' frontend does, and mini-os expects, it does not wait for the backend
        to advertise anything (T49)."""
        async with offer_page(dev, feature_protocol_v2=1) as link:
            if not await dev.otherend.read("feature-protocol-v2", boolean, default=False):
                raise OtherendError("the backend knows only the first vtpm protocol, which nobody uses any more")
            version = VERSIONS[await dev.otherend.read("tpm-version", choice(*VERSIONS), default="1.2")]
            extra = link.grants.share(dev.otherend.domid, EXTRA_PAGES)
            try:
                self._client.attach(link, extra, version)
                await self._offer_to_programs(dev)
                await dev.connected()
                await link.serve(self._client.drain)
            finally:
                self._client.detach()
                extra.unshare()

    async def _offer_to_programs(self, dev: FrontendDevice) -> None:
        """Make the TPM seen, once. The kernel's own resource manager is worth more than a socket, so where there is a
        proxy there is no socket beside it."""
        if self._proxy is not None or self._socket is not None:
            return
        if dev.options.get("vtpmx", OPTIONS["vtpmx"].default) and vtpmx.is_there():
            try:
                self._proxy = ProxyTpm(self._client.execute, self._client.version)
            except VtpmxError as error:
                dev.log.warning("vtpmx.failed", error=str(error))
            else:
                dev.log.info("vtpmx.attached", path=self._proxy.path)
        if self._proxy is None:
            self._socket = TpmSocket(self._client, dev.run_path("sock"))
            await self._socket.listen()

    async def close(self) -> None:
        """The device is gone: commands fail from here on, and the TPM goes away."""
        self._client.die()
        if self._proxy is not None:
            await self._proxy.close()
        if self._socket is not None:
            await self._socket.close()
