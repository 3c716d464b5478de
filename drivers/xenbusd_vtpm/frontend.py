"""The vtpm frontend: gives a TPM to this domain's kernel, where that has a TPM proxy, or else to its programs, on a
UNIX socket. This package's README lists the keys."""

from __future__ import annotations

from xenbusd.api import Frontend, FrontendDevice, OtherendError, ResourceError, boolean, choice
from xenbusd_vtpm import vtpmx
from xenbusd_vtpm.client import PageClient
from xenbusd_vtpm.protocol import EXTRA_PAGES, VERSIONS
from xenbusd_vtpm.settings import OPTIONS
from xenbusd_vtpm.tpm_socket import TpmSocket
from xenbusd_vtpm.vtpmx import ProxyTpm


class VtpmFrontend(Frontend, device_class="vtpm"):
    """Offer one TPM. The proxy or socket outlives a connection; it lasts for as long as the device exists."""

    def __init__(self) -> None:
        self._client = PageClient()
        self._proxy: ProxyTpm | None = None
        self._socket: TpmSocket | None = None

    async def run(self, dev: FrontendDevice) -> None:
        """Serve one connection. It does not wait for the backend to advertise anything: neither does Linux's frontend,
        and mini-os's backend relies on that (T49)."""
        async with dev.offer_page(feature_protocol_v2=1) as link:
            if not await dev.otherend.read("feature-protocol-v2", boolean, default=False):
                raise OtherendError("the backend offers version 1 of the vtpm protocol only; version 2 is needed")
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
        """Give the TPM to the kernel, or else to programs; once. Never to both: a socket would bypass the kernel's
        resource manager."""
        if self._proxy is not None or self._socket is not None:
            return
        if dev.options.get("vtpmx", OPTIONS["vtpmx"].default) and vtpmx.is_there():
            try:
                self._proxy = ProxyTpm(self._client.execute, self._client.version)
            except ResourceError as error:
                dev.log.warning("vtpmx.failed", error=str(error))
            else:
                dev.log.info("vtpmx.attached", path=self._proxy.path)
        if self._proxy is None:
            self._socket = TpmSocket(self._client, dev.run_path("sock"))
            await self._socket.listen()

    async def close(self) -> None:
        """Take the TPM away, because the device is gone; commands fail from now on."""
        self._client.die()
        if self._proxy is not None:
            await self._proxy.close()
        if self._socket is not None:
            await self._socket.close()
