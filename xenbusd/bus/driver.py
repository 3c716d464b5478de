"""A driver: one class for each end, with one coroutine to write, and declarations about its class of devices.

Decision: D18.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Generic, NamedTuple, TypeVar

from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.counters import Measure
from xenbusd.bus.finding import Finding, Nodes
from xenbusd.bus.frontend import FrontendDevice
from xenbusd.bus.paths import parse_number
from xenbusd.bus.state import Side
from xenbusd.errors import UsageError
from xenbusd.ids import DeviceClass, Devid, Domid
from xenbusd.schema import Schema

API_VERSION = 2
"""Increased when a driver written for the previous version would no longer work. CHANGELOG.md says what to change."""

Dev = TypeVar("Dev")


class Directories(NamedTuple):
    """The keys that a toolstack writes for a new device, in addition to those of every class."""

    backend: dict[str, str]
    frontend: dict[str, str]


class ScriptCall(NamedTuple):
    """How a class's hotplug script is called, as far as that differs from other classes."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str] = {}
    """Variables added to the script's environment."""


class Driver(ABC, Generic[Dev]):
    """The base of `Backend` and `Frontend`. Subclass one of these, naming the class:
    `class X(Backend, device_class="x")`.

    There is one instance for each device; it lasts as long as the device.
    """

    device_class: ClassVar[DeviceClass]
    side: ClassVar[Side]
    api_version: ClassVar[int] = API_VERSION

    counters: ClassVar[tuple[Measure, ...]] = ()
    """The driver's own `Counter`s and `Histogram`s, in addition to those of every device."""

    def __init_subclass__(cls, *, device_class: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if device_class is not None:
            cls.device_class = DeviceClass(device_class)

    @classmethod
    def check_options(cls, options: Mapping[str, object]) -> None:
        """Check the class's table of the configuration file, before any device is served. By default accept it.

        Args:
            options: the table that devices get as `options`; it may hold keys for the other end's driver.

        Raises:
            UsageError: naming the table and the key.
        """
        del options

    @abstractmethod
    async def run(self, dev: Dev) -> None:
        """Serve or use one connection, from its beginning to its end. Called again when the other end reconnects."""

    def condition(self) -> Iterable[Finding]:
        """Report the reasons why this device cannot be used that only the running driver knows: its image server is
        being restarted, the disk is paused. `xenbusctl show` calls this method, at any time. By default there are none.
        """
        return ()

    async def close(self) -> None:
        """Release everything that was kept from one connection to the next: the device is gone, or the daemon stops."""


class Backend(Driver[BackendDevice]):
    """The end that owns the resource: advertise, connect, serve."""

    side = Side.BACKEND
    claimed_by_script: ClassVar[str | None] = None
    """For a class for which Linux has a backend as well: the bare name of the hotplug script whose devices are ours in
    arbiter mode. None: every device of the class is ours."""

    linux_module: ClassVar[str | None] = None
    """The kernel module with Linux's own backend for the class, as modprobe takes it. None: Linux has none."""

    live: ClassVar[Schema] = Schema()
    """Keys of the backend's directory that may be changed while it is Connected. Their checks return the node's text.

    Two keys have one meaning for all classes, so that `xenbusctl pause` and `resume` know no class: a class that can
    pause has `pause` among these, 1 or 0, and its backend writes `paused`, 1 or 0, when it has paused or resumed."""

    @classmethod
    def parse_devid(cls, text: str) -> Devid:
        """Read a device's number as `xenbusctl attach --devid` takes it: decimal, or a name that the class knows.

        Raises:
            UsageError: it is not a number or name of the class.
        """
        number = parse_number(text)
        if number is None:
            raise UsageError(f"{text!r} is not a device number: write it in decimal")
        return Devid(number)

    @classmethod
    def directories(cls, devid: Devid, parameters: Mapping[str, str]) -> Directories:
        """Turn the NAME=VALUE parameters of `xenbusctl attach` into keys. By default all go to the backend.

        Raises:
            UsageError: a parameter is unknown, missing or wrong.
        """
        del devid
        return Directories(dict(parameters), {})

    @classmethod
    def live_keys(cls, parameters: Mapping[str, str]) -> dict[str, str]:
        """Turn the NAME=VALUE parameters of `xenbusctl set` into keys of the backend's directory, all in `live`.

        Raises:
            UsageError: a parameter is unknown or wrong.
        """
        for name in parameters:
            if name not in cls.live:
                raise UsageError(f"{cls.device_class}: {name!r} cannot be changed in use{_which_can(cls.live, name)}")
        return cls.live.given(parameters, f"{cls.device_class}:")

    @classmethod
    def explain(cls, nodes: Nodes) -> Iterable[Finding]:
        """Report the reasons why a device cannot be used that a driver of the class can see in the two directories
        alone. Pure: it works without a daemon. By default there are none.

        Args:
            nodes: both directories; the frontend's may hold anything.
        """
        del nodes
        return ()

    @classmethod
    def script_call(cls, action: str, domid: Domid, devid: Devid) -> ScriptCall:
        """Return how the class's hotplug scripts are called, which must be as libxl calls them. By default the action
        is the only argument, as for a disk.

        Args:
            action: "add", before the device connects for the first time, or "remove", after it has closed for good.
            domid: the frontend's domain.
            devid: the device's number.

        Source: tools/libs/light/libxl_linux.c (libxl__hotplug_disk, libxl__hotplug_nic).
        """
        del domid, devid
        return ScriptCall((action,))


def _which_can(live: Schema, name: str) -> str:
    """Which keys can be changed in use, and which of them was probably meant."""
    *others, last = live or [""]
    can = f"; {', '.join(others)} and {last} can" if others else f"; {last} can" if last else ""
    near = live.nearest(name)
    return f"{can}; did you mean {near}?" if near else can


class Frontend(Driver[FrontendDevice]):
    """The end that uses the resource: wait for the backend, offer a ring, use it."""

    side = Side.FRONTEND
