"""`xenbusctl new-driver`: writes a package with both ends of a new driver, its tests and its README.

Decision: D30.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import click

from xenbusd.bus.paths import BUS_ID_MAX, bus_id, check_class
from xenbusd.cli.exits import sentences
from xenbusd.errors import UsageError
from xenbusd.ids import DOMID_FIRST_RESERVED, DeviceClass

TAKEN = frozenset(
    [
        *("9pfs", "console", "pci", "pvcalls", "qdisk", "qusb", "vbd", "vdispl", "vfb", "vif", "vinput", "virtio_disk"),
        *("vkbd", "vsnd", "vtpm", "vuart", "vusb"),  # libxl, up to here
        *("argo", "camera", "tap", "vbd3", "vcamera", "virtio", "vscsi"),
    ]
)
"""Device classes that libxl, Linux, QEMU or blktap know: they would treat such devices as their own.

Source: tools/libs/light/libxl_types_internal.idl (device_kind); xen/include/public/io/.
"""

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", re.ASCII)


@click.command("new-driver")
@click.argument("name", metavar="CLASS")
@click.option(
    "--into", type=click.Path(path_type=Path), default=".", metavar="DIR", help="where to put its folder  [.]"
)
def new_driver(name: str, into: Path) -> None:
    """Write a package with a working driver pair for a new device class CLASS; its tests pass as they are."""
    with sentences():
        device_class = check_new_class(name)
        folder = into / project_name(device_class)
        for path in write_package(device_class, folder):
            click.echo(f"wrote {path}")
        if len(bus_id(device_class, DOMID_FIRST_RESERVED - 1, 0)) > BUS_ID_MAX:
            click.echo(
                f"note: {device_class} is long. Class, domid and devid together may have {BUS_ID_MAX} characters "
                "for Linux to show a device in /sys; it works without that.",
                err=True,
            )
        click.echo(f"\nNow: cd {folder} && pip install --editable '.[test]' && pytest")


def check_new_class(name: str) -> DeviceClass:
    """Return the name of a new class, if it can be one.

    Raises:
        UsageError: no class can be called so, or Xen's own tools know such a class, or a driver for it is installed.
    """
    from importlib.metadata import entry_points

    from xenbusd.registry import GROUP

    check_class(name)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a good name: begin with a letter, and put letters or digits after - or _")
    if name in TAKEN:
        raise UsageError(f"{name} is a device class that Xen's own tools or drivers know: choose another name")
    for point in entry_points(group=GROUP):
        if point.name.rpartition(".")[0] == name:
            raise UsageError(f"there is a driver for {name} already ({point.value}): choose another name")
    return DeviceClass(name)


def project_name(device_class: DeviceClass) -> str:
    """Return the name of the package's folder, and of the package for pip."""
    return f"xenbusd-{device_class.replace('_', '-')}"


def write_package(device_class: DeviceClass, folder: Path) -> list[Path]:
    """Write the package, and return the paths of its files.

    Raises:
        UsageError: the folder exists, or cannot be made.
    """
    from importlib.resources import files

    package = "xenbusd_" + device_class.replace("-", "_")
    words = {
        "name": device_class,
        "Name": "".join(word.capitalize() for word in re.split("[-_]", device_class)),
        "package": package,
        "project": project_name(device_class),
    }
    places = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "init.py": f"{package}/__init__.py",
        "protocol.py": f"{package}/protocol.py",
        "backend.py": f"{package}/backend.py",
        "frontend.py": f"{package}/frontend.py",
        "test.py": f"tests/test_{package.removeprefix('xenbusd_')}.py",
    }
    templates = files("xenbusd.cli") / "driver_template"
    written = []
    try:
        folder.mkdir(parents=True)  # an existing folder is never written to
        for template, place in places.items():
            path = folder / place
            path.parent.mkdir(exist_ok=True)
            path.write_text(Template((templates / f"{template}.in").read_text()).substitute(words))
            written.append(path)
    except FileExistsError:
        raise UsageError(
            f"{folder} exists: nothing is overwritten; remove it, or choose another place by --into"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from None
    return written
