"""What a driver is: one class for each end, with one coroutine to write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.frontend import FrontendDevice
from xenbusd.bus.state import Side
from xenbusd.ids import DeviceClass

API_VERSION = 1
"""Raised when a driver written for the version before would no longer work."""

Dev = TypeVar("Dev")


class Driver(ABC, Generic[Dev]):
    """Common to both ends. Subclass `Backend` or `Frontend`, naming the class: `class X(Backend, device_class="x")`.

    There is one instance for each device, for as long as the device is there.
    """

    device_class: ClassVar[DeviceClass]
    side: ClassVar[Side]
    api_version: ClassVar[int] = API_VERSION

    def __init_subclass__(cls, *, device_class: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if device_class is not None:
            cls.device_class = DeviceClass(device_class)

    @abstractmethod
    async def run(self, dev: Dev) -> None:
        """Live through one connection. Called again when the other end comes back."""

    async def close(self) -> None:
        """Give up what was kept from one connection to the next: the device is gone, or the daemon stops."""


class Backend(Driver[BackendDevice]):
    """The end that owns the resource: advertise, connect, serve."""

    side = Side.BACKEND


class Frontend(Driver[FrontendDevice]):
    """The end that uses the resource: wait for the backend, offer a ring, use it."""

    side = Side.FRONTEND
