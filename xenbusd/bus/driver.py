"""What a driver is: one class for each end, with one coroutine to write."""

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

API_VERSION = 1
"""Raised when a driver written for the version before would no longer work."""

Dev = TypeVar("Dev")


class Directories(NamedTuple):
    """The keys that a toolstack writes for a new device, besides those that every class has."""

    backend: dict[str, str]
    frontend: dict[str, str]


class ScriptCall(NamedTuple):
    """How a hotplug script is called, besides what is the same for every class."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str] = {}
    """More for its environment."""


class Driver(ABC, Generic[Dev]):
    """Common to both ends. Subclass `Backend` or `Frontend`, naming the class: `class X(Backend, device_class="x")`.

    There is one instance for each device, for as long as the device is there.
    """

    device_class: ClassVar[DeviceClass]
    side: ClassVar[Side]
    api_version: ClassVar[int] = API_VERSION

    counters: ClassVar[tuple[Measure, ...]] = ()
    """What the driver counts besides what the bus does for every device: `Counter`s and `Histogram`s."""

    def __init_subclass__(cls, *, device_class: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if device_class is not None:
            cls.device_class = DeviceClass(device_class)

    @classmethod
    def check_options(cls, options: Mapping[str, object]) -> None:
        """Look at the class's table of the configuration file, before anything is served. By default all is well.

        Args:
            options: what devices get as `options`; it may hold keys of the other end.

        Raises:
            UsageError: naming the table and the key.
        """
        del options

    @abstractmethod
    async def run(self, dev: Dev) -> None:
        """Live through one connection. Called again when the other end comes back."""

    def condition(self) -> Iterable[Finding]:
        """Say what only this living device knows of why it is not in use as it should be: an image server restarts, the
        disk is paused. Called at any time, from `xenbusctl show`. By default nothing.
        """
        return ()

    async def close(self) -> None:
        """Give up what was kept from one connection to the next: the device is gone, or the daemon stops."""


class Backend(Driver[BackendDevice]):
    """The end that owns the resource: advertise, connect, serve."""

    side = Side.BACKEND
    claimed_by_script: ClassVar[str | None] = None
    """For a class that Linux has a backend for as well: the hotplug script, by its bare name, whose devices are ours
    in arbiter mode. None: every device of the class is ours."""

    linux_module: ClassVar[str | None] = None
    """Linux's own backend for the class: the kernel module, as modprobe takes it. None: Linux has none."""

    live: ClassVar[Mapping[str, str]] = {}
    """Keys of the backend's directory that may be changed while it is Connected, and what they mean."""

    @classmethod
    def parse_devid(cls, text: str) -> Devid:
        """Read a device's number as `xenbusctl attach --devid` takes it: decimal, or what the class calls its devices.

        Raises:
            UsageError: it is none.
        """
        number = parse_number(text)
        if number is None:
            raise UsageError(f"{text!r} is no device number: write it in decimal")
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
        if unknown := sorted(set(parameters) - set(cls.live)):
            raise UsageError(f"{cls.device_class}: {unknown[0]!r} cannot be changed in use")
        return dict(parameters)

    @classmethod
    def explain(cls, nodes: Nodes) -> Iterable[Finding]:
        """Say what both directories tell of why a device is not in use as it should be, as far as only a driver of this
        class can read it there. Pure: it works without a daemon. By default nothing.

        Args:
            nodes: both directories; the frontend's may hold anything.
        """
        del nodes
        return ()

    @classmethod
    def script_call(cls, action: str, domid: Domid, devid: Devid) -> ScriptCall:
        """Say how the class's hotplug scripts are called, as libxl calls them. By default as a disk's are: with the
        action alone.

        Args:
            action: "add", before the device connects for the first time, or "remove", after it has closed for good.
            domid: the frontend's domain.
            devid: the device's number.

        Source: tools/libs/light/libxl_linux.c (libxl__hotplug_disk, libxl__hotplug_nic).
        """
        del domid, devid
        return ScriptCall((action,))


class Frontend(Driver[FrontendDevice]):
    """The end that uses the resource: wait for the backend, offer a ring, use it."""

    side = Side.FRONTEND
