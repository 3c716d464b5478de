"""Commands start fast, because they import no more than they need. Nothing is timed here: see tests/bench/tools.py."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenbusd.testing.processes import ProcessMachine, machine

PROBE = """
import atexit, runpy, sys
atexit.register(lambda: print(*sorted(sys.modules), sep="\\n", file=sys.stderr))
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__")
"""

NEVER = frozenset(
    [
        *("uvloop", "structlog", "multiprocessing", "concurrent.futures.process", "pytest"),
        *("xenbusd_echo", "xenbusd_vbd", "xenbusd_vtpm", "xenbusd.registry", "importlib.metadata"),
        *("xenbusd.daemon", "xenbusd.bus.driver", "xenbusd.bus.device", "xenbusd.host.real", "xenbusd.host.sim.client"),
        *("xenbusd.store.server", "xenbusd.arbiter.arbiter", "xenbusd.hotplug", "xenbusd.install.files"),
    ]
)
"""Modules that neither `--help` nor `list` has any use for."""

AT_HELP = NEVER | {"asyncio", "ssl", "subprocess", "rich", "pyxs", "tomllib", "xenbusd.store.client", "xenbusd.control"}
"""What makes the start slow, and is needed only by a command that runs."""

CTL, DAEMON = "xenbusd.cli.ctl", "xenbusd"


def loaded(module: str, *arguments: str) -> tuple[str, set[str]]:
    """Run a command; return what it printed, and the modules that it had imported at its end."""
    command = [sys.executable, "-c", PROBE, module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, set(done.stderr.split())


@pytest.fixture(scope="module")
def host() -> Iterator[ProcessMachine]:
    """A simulated host without daemons."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, machine(Path(folder)) as host:
        yield host


@pytest.mark.parametrize("name", ["", "attach", "detach", "list", "show", "timeline", "set", "pause", "resume"])
def test_help_of_xenbusctl(name: str) -> None:
    """A group's callback runs before a command's --help; it reads no configuration file then."""
    printed, modules = loaded(CTL, *name.split(), "--help")
    assert "Usage:" in printed
    assert not modules & (AT_HELP - {"tomllib"} if name else AT_HELP)


@pytest.mark.parametrize("name", ["", "serve", "agent", "release", "sim", "store", "install", "uninstall"])
def test_help_of_xenbusd(name: str) -> None:
    """Neither the daemon nor the simulated host is imported to describe them."""
    printed, modules = loaded(DAEMON, *name.split(), "--help")
    assert "Usage:" in printed
    assert not modules & AT_HELP


def test_help_of_new_driver() -> None:
    """It asks for the drivers that are installed only when it writes one."""
    assert not loaded(CTL, "new-driver", "--help")[1] & (AT_HELP - {"tomllib"})


def test_list(host: ProcessMachine) -> None:
    """It speaks to the store, and knows no driver."""
    assert host.ctl("attach", "echo", "--domain", "0", "--devid", "7", "--no-wait").returncode == 0
    printed, modules = loaded(CTL, "--host", host.spec, "list")
    assert "echo/0/7" in printed
    assert not modules & NEVER


def test_list_for_programs(host: ProcessMachine) -> None:
    """JSON needs no tables either."""
    printed, modules = loaded(CTL, "--host", host.spec, "list", "--json")
    assert isinstance(json.loads(printed), list)
    assert not modules & (NEVER | {"rich"})
