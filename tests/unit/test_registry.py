"""xenbusd.registry: drivers found by their entry points, and the errors of those that cannot be used."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from xenbusd import registry
from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.driver import Backend, Driver, Frontend
from xenbusd.bus.frontend import FrontendDevice
from xenbusd.bus.state import Side
from xenbusd.errors import DriverError, UsageError
from xenbusd.ids import DeviceClass
from xenbusd.registry import Claims


class ToyBackend(Backend, device_class="toy"):
    """Does nothing."""

    async def run(self, dev: BackendDevice) -> None: ...


class ToyFrontend(Frontend, device_class="toy"):
    """Does nothing."""

    async def run(self, dev: FrontendDevice) -> None: ...


class AppleBackend(ToyBackend, device_class="apple"):
    """Another class of the same package."""


class OldBackend(ToyBackend):
    """Was written for an API that is gone."""

    api_version = 0


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of a third party's, as it is imported."""
    module = ModuleType("toys")
    vars(module).update(globals(), not_a_driver=ModuleType, a_function=print)
    monkeypatch.setitem(sys.modules, "toys", module)


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Have these entry points installed: the underscore in a name stands for the dot."""
    install_all(monkeypatch, *((name.replace("_", "."), value) for name, value in points.items()))


def install_all(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Have these entry points installed, which may share a name."""

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "xenbusd.drivers"
        return [EntryPoint(name, value, group) for name, value in points]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_the_drivers_of_one_side_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By class, in the order of their names; the other side's are not looked at."""
    install(
        monkeypatch,
        toy_backend="toys:ToyBackend",
        toy_frontend="toys:ToyFrontend",
        apple_backend="toys:AppleBackend",
        broken_frontend="nowhere:Nothing",
    )
    found = registry.find(Side.BACKEND)
    assert list(found.items()) == [("apple", AppleBackend), ("toy", ToyBackend)]


def test_only_what_is_wanted_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that cannot be loaded is no harm to who does not want it."""
    install(monkeypatch, toy_backend="toys:ToyBackend", broken_backend="nowhere:Nothing")
    assert registry.find(Side.BACKEND, ["toy", "toy"]) == {"toy": ToyBackend}


def test_our_own_drivers_are_found_as_any_others() -> None:
    """Rule 9: echo and vbd come through the entry points of the installed package."""
    for side in Side:
        drivers = registry.find(side, ["echo", "vbd"])
        assert [driver.device_class for driver in drivers.values()] == ["echo", "vbd"]
        assert {driver.side for driver in drivers.values()} == {side}


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no error until a class is wanted."""
    install(monkeypatch)
    assert registry.find(Side.BACKEND) == {}
    with pytest.raises(DriverError, match="no backend driver for toy; there are drivers for none"):
        registry.find(Side.BACKEND, ["toy"])


def test_a_wanted_class_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are missing are named, and what there is."""
    install(monkeypatch, toy_backend="toys:ToyBackend", apple_backend="toys:AppleBackend", pear_frontend="toys:X")
    with pytest.raises(DriverError, match="no backend driver for pear, plum; there are drivers for apple, toy"):
        registry.find(Side.BACKEND, ["plum", "toy", "pear"])


def test_a_wanted_class_that_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's mistake, said as such."""
    install(monkeypatch, toy_backend="toys:ToyBackend")
    with pytest.raises(UsageError, match="'Toy' is not a device class"):
        registry.find(Side.BACKEND, ["Toy"])


def test_two_drivers_for_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is chosen: which one served a device would be chance."""
    install_all(monkeypatch, ("toy.backend", "toys:ToyBackend"), ("toy.backend", "toys:OldBackend"))
    with pytest.raises(
        DriverError, match="two backend drivers for toy: toys:ToyBackend and toys:OldBackend; uninstall one"
    ):
        registry.find(Side.BACKEND)


def test_one_driver_installed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same package in two places of the path, as an editable install may be, is one driver."""
    install_all(monkeypatch, ("toy.backend", "toys:ToyBackend"), ("toy.backend", "toys:ToyBackend"))
    assert registry.find(Side.BACKEND) == {"toy": ToyBackend}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("toy.backend", "nowhere:Nothing", r"nowhere:Nothing of toy.backend cannot be loaded: ModuleNotFoundError"),
        ("toy.backend", "toys:Missing", r"toys:Missing of toy.backend cannot be loaded: AttributeError"),
        ("toy.backend", "toys:not_a_driver", "is no driver: it is not a subclass of Backend or Frontend"),
        ("toy.backend", "toys:a_function", "is no driver"),
        ("toy.backend", "toys:OldBackend", "is for API version 0, this is version 2"),
        (
            "pear.backend",
            "toys:ToyBackend",
            "entry point pear.backend names toys:ToyBackend, which is the backend of toy",
        ),
        ("toy.backend", "toys:ToyFrontend", "names toys:ToyFrontend, which is the frontend of toy"),
        ("TOY.backend", "toys:ToyBackend", "entry point 'TOY.backend' of toys:ToyBackend: 'TOY' is not a device class"),
        (".backend", "toys:ToyBackend", "is not a device class"),
        ("backend", "toys:ToyBackend", "is not a device class"),
    ],
)
def test_a_driver_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    """DriverError names the entry point and what is wrong with it; the daemon does not start without it."""
    install_all(monkeypatch, (name, value))
    with pytest.raises(DriverError, match=message):
        registry.find(Side.BACKEND)


def test_an_entry_point_of_no_side_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version may have more kinds than two."""
    install_all(monkeypatch, ("toy.inspector", "nowhere:Nothing"))
    assert registry.find(Side.BACKEND) == {}
    assert registry.find(Side.FRONTEND) == {}


def test_a_driver_without_a_class_or_side_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass that forgot its `device_class`, or that is neither end's, is told what to derive from."""

    class Nameless(Backend):
        async def run(self, dev: BackendDevice) -> None: ...

    class Sideless(Driver[BackendDevice], device_class="toy"):
        async def run(self, dev: BackendDevice) -> None: ...

    vars(sys.modules["toys"]).update(Nameless=Nameless, Sideless=Sideless)
    for name in ("Nameless", "Sideless"):
        install(monkeypatch, toy_backend=f"toys:{name}")
        with pytest.raises(DriverError, match=f"toys:{name} must be a Backend or Frontend with device_class='toy'"):
            registry.find(Side.BACKEND)


def test_what_is_found_can_be_made() -> None:
    """A driver takes no arguments: one instance for each device."""
    for driver in (ToyBackend, ToyFrontend):
        assert isinstance(driver(), Driver)


class SharedBackend(ToyBackend, device_class="shared"):
    """A backend of a class that Linux has one for too."""

    claimed_by_script = "block-toy"
    linux_module = "xen-toyback"


DRIVERS: dict[DeviceClass, type[Driver[Any]]] = {
    driver.device_class: driver for driver in (AppleBackend, SharedBackend, ToyFrontend)
}


@pytest.mark.parametrize("script", [None, b"", "block-toy", b"/etc/xen/scripts/block"])
def test_a_class_that_linux_does_not_serve_is_ours_as_a_whole(script: str | bytes | None) -> None:
    """Whatever script a device has."""
    assert Claims.of(DRIVERS, shared=True).is_ours("apple", script)


@pytest.mark.parametrize(
    ("script", "ours"),
    [
        ("block-toy", True),
        (b"block-toy", True),
        (b"/etc/xen/scripts/block-toy", True),
        ("/usr/local/block-toy", True),
        (b"/etc/xen/scripts/block", False),
        (b"block-toy/", False),
        (b"\xff", False),
        (b"", False),
        (None, False),
    ],
)
def test_where_linux_serves_too_the_script_decides(script: str | bytes | None, ours: bool) -> None:
    """By its name alone, wherever it is."""
    assert Claims.of(DRIVERS, shared=True).is_ours("shared", script) is ours


def test_where_linux_does_not_serve_every_device_is_ours() -> None:
    """Outside arbiter mode the script decides nothing."""
    claims = Claims.of(DRIVERS, shared=False)
    assert claims.is_ours("shared", "/etc/xen/scripts/block")
    assert claims.is_ours("shared", None)


@pytest.mark.parametrize("device_class", ["vif", "toy", "", "a b"])
def test_a_class_without_a_backend_of_ours_is_not_ours(device_class: str) -> None:
    """Nor one that we have only a frontend for; a name from the store or the kernel may be anything."""
    claims = Claims.of(DRIVERS, shared=False)
    assert not claims.serves(device_class)
    assert not claims.is_ours(device_class, "block-toy")


def test_linux_modules() -> None:
    """The driver names the module: of a class that Linux has no backend for there is none."""
    assert registry.linux_modules(DRIVERS) == {"shared": "xen-toyback"}


def test_disks_are_shared_with_linux() -> None:
    """Of the tree's own classes, Linux has a backend for vbd: there the script decides."""
    drivers = registry.find(Side.BACKEND, ["echo", "vbd"])
    assert Claims.of(drivers, shared=True) == Claims({DeviceClass("echo"): None, DeviceClass("vbd"): "block-xenbusd"})
    assert registry.linux_modules(drivers) == {"vbd": "xen-blkback"}
