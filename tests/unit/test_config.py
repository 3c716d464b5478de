"""xenbusd.config: the meaning of a configuration file, and how mistakes in it are reported."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from xenbusd.config import Config, DaemonConfig, HotplugConfig, load
from xenbusd.errors import UsageError
from xenbusd.ids import Domid


def written(folder: Path, text: str | bytes) -> str:
    """The path of a configuration file with this text."""
    path = folder / "xenbusd.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    """An empty file is the same as no file."""
    assert load(written(tmp_path, "")) == Config()
    assert Config().daemon == DaemonConfig("xen", None, None, "auto", "info", "auto")
    assert Config().hotplug == HotplugConfig(40.0, "/etc/xen/scripts")


def test_every_key(tmp_path: Path) -> None:
    """Each key arrives where it belongs, and a driver's table arrives as it is."""
    config = load(
        written(
            tmp_path,
            """
            [daemon]
            host = "sim:/run/host.sock"
            run_dir = "/run/mine"
            classes = ["vbd", "echo"]
            log_format = "json"
            log_level = "debug"
            loop = "asyncio"
            arbiter = true
            [hotplug]
            timeout_s = 5
            scripts_dir = "/opt/scripts"
            [drivers.vbd]
            images = { raw = ["/srv"] }
            """,
        )
    )
    assert config.daemon == DaemonConfig(
        "sim:/run/host.sock", "/run/mine", ("vbd", "echo"), "json", "debug", "asyncio", True
    )
    assert config.hotplug == HotplugConfig(5.0, "/opt/scripts")
    assert config.driver("vbd") == {"images": {"raw": ["/srv"]}}
    assert config.driver("echo") == {}


def test_it_cannot_be_changed(tmp_path: Path) -> None:
    """A configuration cannot be changed after it was read."""
    config = load(written(tmp_path, "[drivers.vbd]\na = 1\n"))
    with pytest.raises(FrozenInstanceError):
        config.daemon.loop = "uvloop"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.drivers["vbd"] = {}  # type: ignore[index]
    with pytest.raises(TypeError):
        config.driver("vbd")["a"] = 2  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[daemon]\n\nhots = 'xen'\n", 3, r"\[daemon\] hots: unknown key; did you mean host\?"),
        ("[hotplug]\nzzz = 1\n", 2, r"\[hotplug\] zzz: unknown key; the keys are timeout_s, scripts_dir"),
        ("[deamon]\n", 1, r"unknown table 'deamon'; the tables are \[daemon\]"),
        ("\nloop = 'auto'\n", 2, "unknown key 'loop'; the tables are"),
        ("daemon = 1\n", 1, r"'daemon' must be a table: write \[daemon\]"),
        ("[daemon]\nhost = 'kvm'\n", 2, r"\[daemon\] host: 'kvm' is no host: write xen, or sim:"),
        ("[daemon]\nhost = 'sim:'\n", 2, "is no host"),
        ("[daemon]\nhost = 1\n", 2, "is no host"),
        ("[daemon]\nrun_dir = 'run'\n", 2, "'run' is not an absolute path"),
        ("[daemon]\nclasses = 'vbd'\n", 2, "'vbd' is not a list of device classes"),
        ("[daemon]\nclasses = []\n", 2, "leave it out to serve all"),
        ("[daemon]\nclasses = ['V BD']\n", 2, "'V BD' is not a device class"),
        ("[daemon]\nlog_format = 'xml'\n", 2, "'xml' is none of auto, console, json, journal"),
        ("[daemon]\nlog_level = 3\n", 2, "3 is none of debug, info, warning, error"),
        ("[daemon]\nloop = ['auto']\n", 2, "is none of auto, uvloop, asyncio"),
        ("[daemon]\narbiter = 'yes'\n", 2, "'yes' is neither true nor false"),
        ("[hotplug]\ntimeout_s = 0\n", 2, "0 is not a number of seconds above 0 and up to 3600"),
        ("[hotplug]\ntimeout_s = true\n", 2, "True is not a number of seconds"),
        ("[hotplug]\ntimeout_s = nan\n", 2, "nan is not a number of seconds"),
        ("[hotplug]\ntimeout_s = '40'\n", 2, "'40' is not a number of seconds"),
        ("[drivers]\nvbd = 1\n", 2, r"drivers.vbd must be a table: write \[drivers.vbd\]"),
        ("\n\n[drivers.'v/d']\n", 3, r"\[drivers.v/d\]: 'v/d' is not a device class"),
        ("[daemon]\nhost = \n", None, r"is not TOML: .*line 2"),
        ("daemon.loop = 'x'\n", 1, r"\[daemon\] loop: 'x' is none of"),
        ("daemon = { loop = 'x' }\n", None, r"\[daemon\] loop: 'x' is none of"),
        (b"# \xff", None, r"is not UTF-8 \(byte 2\)"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str | bytes, line: int | None, message: str) -> None:
    """A wrong file is refused with the file, the line where it can be known, the key, and what is wrong."""
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(path if line is None else f"{path}: line {line}: ")


def test_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is an error with a reason, not the defaults."""
    with pytest.raises(UsageError, match=r"nowhere.toml: cannot be read: No such file"):
        load(str(tmp_path / "nowhere.toml"))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load(str(tmp_path))


def test_run_dir() -> None:
    """By default it is /run/xenbusd on Xen, and a folder for each domain on a simulated host."""
    assert Config().run_dir(Domid(0)) == "/run/xenbusd"
    assert Config().with_overrides(host="sim:/tmp/h").run_dir(Domid(3)) == "/tmp/h.dom3"
    assert Config().with_overrides(host="sim:/tmp/h", run_dir="/run/x").run_dir(Domid(3)) == "/run/x"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    """A flag that was given replaces the file's value; one that was not given leaves it."""
    config = load(written(tmp_path, "[daemon]\nloop = 'asyncio'\nlog_level = 'error'\n[hotplug]\ntimeout_s = 1\n"))
    config = config.with_overrides(log_level="debug", loop=None, classes=("echo",))
    assert config.daemon == DaemonConfig(log_level="debug", loop="asyncio", classes=("echo",))
    assert config.hotplug.timeout_s == 1.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"log_format": "xml"}, "--log-format: 'xml' is none of"), ({"host": "x"}, "--host: 'x' is no host")],
)
def test_a_wrong_flag_is_named(flags: dict[str, str], message: str) -> None:
    """A wrong flag is reported by its own name, as the user typed it."""
    with pytest.raises(UsageError, match=message):
        Config().with_overrides(**flags)


@pytest.mark.parametrize("name", ["vbd", "9pfs", "foo-bar", "my_class-2"])
def test_any_class_can_be_configured(tmp_path: Path, name: str) -> None:
    """What `xenbusctl new-driver` and the store's paths take is a class here as well."""
    config = load(written(tmp_path, f'[daemon]\nclasses = ["{name}"]\n[drivers.{name}]\nsize = 4\n'))
    assert config.daemon.classes == (name,)
    assert config.driver(name) == {"size": 4}


def test_places_in_the_run_directory() -> None:
    """The control socket is in it; state that outlives the daemon only on a simulated host, whose drivers share it."""
    simulated = Config().with_overrides(host="sim:/tmp/h")
    assert Config().control_socket(Domid(0)) == "/run/xenbusd/control.sock"
    assert simulated.control_socket(Domid(3)) == "/tmp/h.dom3/control.sock"
    assert Config().state_dir(Domid(0)) is None
    assert simulated.state_dir(Domid(3)) == "/tmp/h.dom3"
