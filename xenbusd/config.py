"""The configuration file: TOML in, frozen dataclasses out. A mistake is reported with its file, line and key.

[daemon]
host = "xen"                      # or "sim:/run/host.sock"
run_dir = "/run/xenbusd"          # default; on a simulated host <socket>.dom<domid>
classes = ["vbd"]                 # default: every class that has a driver
log_format = "auto"               # auto, console, json, journal
log_level = "info"                # debug, info, warning, error
loop = "auto"                     # auto, uvloop, asyncio
arbiter = false                   # true: share each class with Linux's own backends (serve, on Xen)

[hotplug]
timeout_s = 40.0                  # seconds
scripts_dir = "/etc/xen/scripts"

[drivers.vbd]                     # the options of the driver for that class: see the driver's README
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from xenbusd import log
from xenbusd.errors import UsageError
from xenbusd.ids import Domid
from xenbusd.process import loop
from xenbusd.schema import Option, Schema, absolute_path, device_class, one_of, true_or_false

RUN_DIR = "/run/xenbusd"
"""The run directory on a Xen host."""

SCRIPT_TIMEOUT_S = 40.0
"""The time limit of a hotplug script: libxl's (LIBXL_HOTPLUG_TIMEOUT)."""

SCRIPTS_DIR = "/etc/xen/scripts"
"""The folder of Xen's hotplug scripts, and of ours once they are installed."""

TIMEOUT_MAX_S = 3600.0
"""The longest time limit that a hotplug script can be given."""


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Table [daemon]: the classes that the daemon serves, and how it runs."""

    host: str = "xen"
    """ "xen", or "sim:" and the socket of a simulated host."""
    run_dir: str | None = None
    """An absolute path; None: see `Config.run_dir`."""
    classes: tuple[str, ...] | None = None
    """The device classes to serve; None: every class that has a driver."""
    log_format: str = "auto"
    """One of `log.FORMATS`; "auto": journal if stderr goes to the journal, otherwise console."""
    log_level: str = "info"
    """One of `log.LEVELS`: the least severe events that are logged."""
    loop: str = "auto"
    """One of `loop.CHOICES`; "auto": uvloop if it is installed."""
    arbiter: bool = False
    """Whether each class is shared with Linux's own backends; see xenbusd.arbiter."""


@dataclass(frozen=True, slots=True)
class HotplugConfig:
    """Table [hotplug]: how hotplug scripts are run."""

    timeout_s: float = SCRIPT_TIMEOUT_S
    """Seconds until a script is killed; libxl's limit is 40 s."""
    scripts_dir: str = SCRIPTS_DIR
    """The folder of scripts that are given by their bare names."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. `Config()` is the one in use without a file."""

    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    hotplug: HotplugConfig = field(default_factory=HotplugConfig)
    drivers: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    """For each device class, the table for its driver, unchecked: only the driver knows its options."""

    def run_dir(self, domid: Domid) -> str:
        """Return the run directory: the folder of the control socket and of everything else that a reboot may delete.

        Without `run_dir` in the file it is /run/xenbusd on Xen, and on a simulated host a folder beside the host's
        socket for each domain, because all domains share one file system there.
        """
        if self.daemon.run_dir is not None:
            return self.daemon.run_dir
        if self.daemon.host == "xen":
            return RUN_DIR
        return f"{self.daemon.host.removeprefix('sim:')}.dom{domid}"

    def control_socket(self, domid: Domid) -> str:
        """Return the path of the socket on which the daemon of a domain answers."""
        return f"{self.run_dir(domid)}/control.sock"

    def state_dir(self, domid: Domid) -> str | None:
        """Return the folder for state that outlives the daemon; None on Xen, where each driver has one of its own."""
        return None if self.daemon.host == "xen" else self.run_dir(domid)

    def driver(self, device_class: str) -> Mapping[str, object]:
        """Return the table for a device class; empty if the file has none."""
        return self.drivers.get(device_class, MappingProxyType({}))

    def with_overrides(self, **flags: object) -> Config:
        """Return a copy in which command-line flags take precedence over the file.

        Args:
            flags: by key of [daemon]; None: the flag was not given.

        Raises:
            UsageError: naming the flag.
        """
        given = {key: value for key, value in flags.items() if value is not None}
        checked = {key: DAEMON.check(key, value, f"--{key.replace('_', '-')}") for key, value in given.items()}
        return replace(self, daemon=replace(self.daemon, **checked))


def load(path: str) -> Config:
    """Read a configuration file.

    Raises:
        UsageError: naming the file, and also the line and the key if the mistake is in one.
    Blocks: reads one file.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        tables = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start}); TOML is") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: is not TOML: {error}") from error

    def where(*keys: str) -> str:
        line = _line_of(text, keys)
        return f"{path}: line {line}" if line else path

    for name, table in tables.items():
        if name not in ("daemon", "hotplug", "drivers"):
            known = "the tables are [daemon], [hotplug] and [drivers.<class>]"
            raise UsageError(
                f"{where(name)}: unknown {'table' if isinstance(table, dict) else 'key'} {name!r}; {known}"
            )
        if not isinstance(table, dict):
            raise UsageError(f"{where(name)}: {name!r} must be a table: write [{name}]")
    daemon, hotplug = (
        {
            key: schema.check(key, value, f"{where(name, key)}: [{name}] {key}")
            for key, value in tables.get(name, {}).items()
        }
        for name, schema in (("daemon", DAEMON), ("hotplug", HOTPLUG))
    )
    drivers: dict[str, Mapping[str, object]] = {}
    for name, table in tables.get("drivers", {}).items():
        if not isinstance(table, dict):
            raise UsageError(f"{where('drivers', name)}: drivers.{name} must be a table: write [drivers.{name}]")
        try:
            drivers[device_class(name)] = MappingProxyType(table)
        except ValueError as error:
            raise UsageError(f"{where('drivers', name)}: [drivers.{name}]: {error}") from error
    return Config(DaemonConfig(**daemon), HotplugConfig(**hotplug), MappingProxyType(drivers))


def _host(value: object) -> str:
    if value == "xen" or (isinstance(value, str) and value.startswith("sim:") and len(value) > len("sim:")):
        return str(value)
    raise ValueError(f"{value!r} is no host: write xen, or sim: and the path of a simulated host's socket")


def _classes(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f'{value!r} is not a list of device classes such as ["vbd"]; leave it out to serve all')
    return tuple(device_class(item) for item in value)


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= TIMEOUT_MAX_S:
        return float(value)
    raise ValueError(f"{value!r} is not a number of seconds above 0 and up to {TIMEOUT_MAX_S:g}")


_DAEMON_DEFAULTS = DaemonConfig()
DAEMON = Schema(
    Option(
        "host", _host, default=_DAEMON_DEFAULTS.host, help="the Xen host: xen, or sim: and a simulated host's socket"
    ),
    Option("run_dir", absolute_path, help="folder of the control socket"),
    Option("classes", _classes, help="device classes to serve; without it, every class that has a driver"),
    Option("log_format", one_of(*log.FORMATS), default=_DAEMON_DEFAULTS.log_format, help="how log lines are written"),
    Option("log_level", one_of(*log.LEVELS), default=_DAEMON_DEFAULTS.log_level, help="which log lines are written"),
    Option("loop", one_of(*loop.CHOICES), default=_DAEMON_DEFAULTS.loop, help="the event loop"),
    Option(
        "arbiter", true_or_false, default=_DAEMON_DEFAULTS.arbiter, help="share each class with Linux's own backends"
    ),
)
"""The options of table [daemon]."""

_HOTPLUG_DEFAULTS = HotplugConfig()
HOTPLUG = Schema(
    Option("timeout_s", _seconds, unit="seconds", default=_HOTPLUG_DEFAULTS.timeout_s, help="time limit of a script"),
    Option("scripts_dir", absolute_path, default=_HOTPLUG_DEFAULTS.scripts_dir, help="folder of scripts given by name"),
)
"""The options of table [hotplug]."""


def _line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """Return the number of the line, from 1, with a key or its table; None if it is written in a way unknown here.

    tomllib does not report lines. A line of a multi-line string that looks like the key would be reported by mistake.
    """
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\]]*)\]", line):
            table = _split(header[1])
            found = table[: len(keys)] == keys
        else:
            assignment = re.match(r"\s*([^=#]+?)\s*=", line)
            found = assignment is not None and (table + _split(assignment[1]))[: len(keys)] == keys
        if found:
            return number
    return None


def _split(dotted: str) -> tuple[str, ...]:
    """Split a dotted TOML key into its parts, without quotes."""
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
