"""Which host: the real one, or a simulated one."""

from __future__ import annotations

from xenbusd.errors import UsageError
from xenbusd.host.interface import Host
from xenbusd.host.sim.protocol import STORE_SUFFIX
from xenbusd.ids import DOM0, Domid
from xenbusd.store.endpoint import Endpoint, unix_endpoint


def open_host(spec: str, *, domid: int | None = None) -> Host:
    """Open the host interface for this process.

    Args:
        spec: "xen", or "sim:PATH" with the socket of a running `xenbusd sim`.
        domid: the domain to be in; simulated only, where None is 0. On real Xen a process cannot choose its domain.

    Raises:
        UsageError: `spec` is neither, or no such host is there; the message says what is missing.
        HypercallError: a device of the real host may not be opened.
    """
    # Each host is imported only when it is chosen: a real one needs no simulation, nor a simulation Xen's libraries.
    if spec == "xen":
        if domid is not None:
            raise UsageError(f"domain {domid} cannot be chosen on a real Xen host: run this inside that domain")
        from xenbusd.host.real import RealHost

        return RealHost()
    kind, _, path = spec.partition(":")
    if kind == "sim" and path:
        from xenbusd.host.sim.client import SimHost

        return SimHost(path, DOM0 if domid is None else Domid(domid))
    raise no_host(spec)


def store_of(spec: str) -> Endpoint:
    """Return the endpoint of dom0's store on a host, for a tool that needs nothing else of the host.

    Args:
        spec: as `open_host` takes it.

    Raises:
        UsageError: `spec` names no host.
    """
    if spec == "xen":
        return unix_endpoint()
    kind, _, path = spec.partition(":")
    if kind == "sim" and path:
        return unix_endpoint(path + STORE_SUFFIX)
    raise no_host(spec)


def no_host(spec: str) -> UsageError:
    """The error for a `spec` that names no host."""
    return UsageError(f"{spec!r} is no host: say xen, or sim:PATH with the socket of a running `xenbusd sim`")
