"""The services that all devices of one process share. Each device is handed them, rather than finding them itself.

A process may serve all devices of a host or those of one guest: nothing here says that it sees all devices, owns the
run directory, or is the process that answers on the control socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from xenbusd.bus.ports import Ports
from xenbusd.bus.timeline import Timelines
from xenbusd.host.interface import Host
from xenbusd.ids import Domid
from xenbusd.log import Logger
from xenbusd.store.client import StoreClient

NO_VARIABLES: Mapping[str, str] = {}


class HotplugRunner(Protocol):
    """Runs hotplug scripts, in this process or by asking another one; see xenbusd.hotplug."""

    async def run(
        self,
        script: str,
        action: str,
        *,
        backend_path: str,
        device_class: str,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        """Run one script to its end.

        Args:
            script: an absolute path, or a bare name.
            action: "add" or "remove".
            backend_path: the backend's directory.
            device_class: the class whose driver says how the script is called.
            variables: further variables for its environment, from the device's driver.

        Raises:
            HotplugError: the script fails.
        """


@dataclass
class Services:
    """The services that all devices of one process share."""

    store: StoreClient
    host: Host
    ports: Ports
    domid: Domid
    """Our own domain."""
    log: Logger
    run_dir: str
    """The directory of drivers' sockets and of journals; other processes may have files there, too."""
    state_dir: str | None
    """The directory for drivers' state that outlives the daemon; None: each driver's own."""
    hotplug: HotplugRunner | None = None
    """None where another program runs the scripts."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Each class's table of the configuration file."""
    timelines: Timelines = field(default_factory=Timelines)
