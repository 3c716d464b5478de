"""xenbusd.bus.paths: the directories of a device pair, and names that are refused."""

from __future__ import annotations

import pytest

from xenbusd.bus.paths import (
    DeviceId,
    backend_root,
    bus_id,
    check_class,
    frontend_root,
    parse_backend,
    parse_bus_id,
    parse_name,
    parse_number,
)
from xenbusd.bus.state import Side
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid

VBD = DeviceClass("vbd")
XVDA = DeviceId(VBD, Domid(3), Devid(51712))
SERVED_BY_7 = DeviceId(VBD, Domid(3), Devid(51712), Domid(7))


def test_names_of_a_device() -> None:
    """One for commands, which shows a backend outside dom0; one for the log, which is Linux' bus id."""
    assert str(XVDA) == "vbd/3/51712"
    assert str(SERVED_BY_7) == "vbd/3/51712@7"
    assert XVDA.log_name == SERVED_BY_7.log_name == "vbd-3-51712"


def test_directories_are_libxls() -> None:
    """libxl__device_backend_path and libxl__device_frontend_path, also where the backend is a driver domain's."""
    assert XVDA.backend_path == "/local/domain/0/backend/vbd/3/51712"
    assert XVDA.frontend_path == "/local/domain/3/device/vbd/51712"
    assert SERVED_BY_7.backend_path == "/local/domain/7/backend/vbd/3/51712"
    assert SERVED_BY_7.frontend_path == XVDA.frontend_path


@pytest.mark.parametrize("side", Side)
def test_each_end_has_its_directory(side: Side) -> None:
    """`path` is the backend's or the frontend's."""
    assert SERVED_BY_7.path(side) == (SERVED_BY_7.backend_path if side is Side.BACKEND else SERVED_BY_7.frontend_path)


def test_error_nodes_stand_in_each_ends_own_domain() -> None:
    """T58: error/<nodename>/error, relative to the domain that reports."""
    assert XVDA.error_path(Side.BACKEND) == "/local/domain/0/error/backend/vbd/3/51712/error"
    assert SERVED_BY_7.error_path(Side.BACKEND) == "/local/domain/7/error/backend/vbd/3/51712/error"
    assert XVDA.error_path(Side.FRONTEND) == "/local/domain/3/error/device/vbd/51712/error"


def test_libxls_own_note_of_a_device() -> None:
    """T25: if it is there, libxl runs the scripts."""
    assert XVDA.libxl_path == "/libxl/3/device/vbd/51712"


def test_roots_are_what_a_class_is_watched_at() -> None:
    """T13: one watch for all devices of a class."""
    assert backend_root(DOM0, VBD) == "/local/domain/0/backend/vbd"
    assert frontend_root(Domid(3), VBD) == "/local/domain/3/device/vbd"
    assert XVDA.backend_path.startswith(backend_root(DOM0, VBD) + "/")


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("7", 7), ("51712", 51712), ("4294967295", 0xFFFFFFFF)])
def test_numbers_are_decimal(text: str, number: int) -> None:
    """T16: as the store spells them."""
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "01", "00", " 1", "1 ", "1\n", "0x1", "1_0", "\u0661", "4294967296", "99999999999", "a"]
)
def test_what_is_no_number_is_none(text: str) -> None:
    """No sign, no leading zero, no other digits than ASCII's, at most 32 bits."""
    assert parse_number(text) is None


def test_a_number_has_a_limit() -> None:
    """The limit itself is allowed."""
    assert parse_number("32751", 32751) == 32751
    assert parse_number("32752", 32751) is None


@pytest.mark.parametrize("below", ["", "/state", "/queue-0/ring-ref"])
def test_a_backends_path_names_its_device(below: str) -> None:
    """The name is parsed from the directory, and from every node below it."""
    root = backend_root(Domid(7), VBD)
    assert parse_backend(root, f"{root}/3/51712{below}", Domid(7), VBD) == SERVED_BY_7


@pytest.mark.parametrize(
    "path",
    [
        "/local/domain/0/backend/vbd",
        "/local/domain/0/backend/vbd/3",
        "/local/domain/0/backend/vbdx/3/51712",
        "/local/domain/0/backend/vif/3/51712",
        "/local/domain/0/backend/vbd/03/51712",
        "/local/domain/0/backend/vbd/3/xvda",
        "/local/domain/0/backend/vbd//51712",
        "/local/domain/0/backend/vbd/32752/51712",
        "/local/domain/0/backend/vbd/3/4294967296",
        "/local/domain/1/backend/vbd/3/51712",
        "",
    ],
)
def test_other_paths_name_no_device(path: str) -> None:
    """T16: too short, another class, another domain, not numbers, or a domid that no domain can have (0x7FF0 on)."""
    assert parse_backend(backend_root(DOM0, VBD), path, DOM0, VBD) is None


def test_a_name_is_read_back() -> None:
    """What `str` prints, commands take."""
    assert parse_name("vbd/3/51712") == parse_name("vbd/3/51712@0") == XVDA
    assert parse_name("vbd/3/51712@7") == SERVED_BY_7
    assert parse_name("my-class_2/0/0") == DeviceId(DeviceClass("my-class_2"), Domid(0), Devid(0))


@pytest.mark.parametrize(
    "name",
    [
        *("", "vbd", "vbd/3", "vbd/3/", "/3/1", "vbd/3/1/2", "VBD/3/1", "vbd/3/xvda", "vbd/-1/1", "vbd/32752/1"),
        *("v bd/3/1", "vbd/3/1@", "vbd/3/1@x", "vbd/3/1@07", "vbd/3/1@32752", "vbd/3/1@7@7", "vbd/3@7/1", "vbd/3/@7"),
    ],
)
def test_a_bad_name_says_how_to_write_one(name: str) -> None:
    """The message repeats what was written and shows the form."""
    with pytest.raises(UsageError, match="write CLASS/DOMID/DEVID, as in vbd/3/51712") as caught:
        parse_name(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["vbd", "9pfs", "echo", "my-class_2", "a" * 32])
def test_class_names(name: str) -> None:
    """Small letters, digits, - and _, as a directory's name in the store."""
    assert check_class(name) == name


@pytest.mark.parametrize("name", ["", "Vbd", "v/bd", "-vbd", "_x", "vbd\n", "v.bd", "a" * 33, "vbd*", "é"])
def test_bad_class_names_are_refused(name: str) -> None:
    """Nothing that is another path, or that the store would refuse."""
    with pytest.raises(UsageError, match="is not a device class"):
        check_class(name)


def test_a_bus_id_and_its_parts() -> None:
    """A class may have dashes of its own."""
    for name in ("vbd", "foo-bar", "my-class-2"):
        assert parse_bus_id(bus_id(name, 3, 51712)) == (name, 3, 51712)
    assert bus_id("vbd", "3", "51712") == XVDA.log_name == "vbd-3-51712"


@pytest.mark.parametrize(
    "text", ["", "vbd", "vbd-3", "-3-1", "vbd-3-x", "vbd-03-1", "vbd-32752-1", "Vbd-3-1", "vbd-3-"]
)
def test_what_is_no_bus_id(text: str) -> None:
    """None, for a file's name may be anything."""
    assert parse_bus_id(text) is None


def test_files_of_a_device() -> None:
    """A guest's frontends are known by class and number; a backend's devices by their domain as well."""
    assert XVDA.run_path(Side.FRONTEND, "/run/xenbusd", "sock") == "/run/xenbusd/vbd-51712.sock"
    assert XVDA.run_path(Side.BACKEND, "/run/xenbusd", "nbd") == "/run/xenbusd/vbd-3-51712.nbd"
