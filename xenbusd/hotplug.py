"""Runs hotplug scripts as libxl does, so that Xen's own scripts and those of each site work unchanged.

A script prepares the resource behind a device (a loop device, a bridge port) and reports success or failure by its exit
status and by the nodes `hotplug-status` and `hotplug-error`. It is run by exactly one party: libxl runs it for devices
that `xl` attached; we run it for ours, and in a driver domain in the place of `xl devd` (T25).

A script's environment is the same for every class, except for the variables that the class's driver adds; the driver
also gives the script's arguments (`Backend.script_call`).

Source: tools/libs/light/libxl_linux.c (get_hotplug_env), libxl_aoutils.c (async_exec_timeout),
docs/misc/block-scripts.txt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from xenbusd.bus.driver import Backend, Driver
from xenbusd.bus.paths import bus_id
from xenbusd.bus.services import NO_VARIABLES
from xenbusd.config import SCRIPT_TIMEOUT_S, SCRIPTS_DIR
from xenbusd.errors import HotplugError, LocalProtocolError
from xenbusd.ids import DeviceClass, Devid, Domid, is_device_class
from xenbusd.process.child import Child, child_environ
from xenbusd.shipped import shipped_dir

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

SHIPPED_DIR = shipped_dir("hotplug")
"""The folder of our own scripts, searched for a bare name after `scripts_dir`: `xenbusctl attach` works uninstalled."""

NOT_EXECUTABLE = 126
NOT_FOUND = 127
"""The statuses a shell gives when it cannot run a command."""


class ScriptRunner:
    """Runs scripts, one at a time for each device, each in a process group of its own and under a time limit.

    Args:
        timeout_s: seconds until a script's whole process group is killed.
        store_socket: the store's socket for xenstore-read and its kin (XENSTORED_PATH); None: their default.
        log: gets one line for each run.
        scripts_dir: the directory of scripts given by their bare names.
        drivers: the backend drivers, by class, each of which says how its scripts are called; the scripts of any other
            class are called as a disk's are.
    """

    def __init__(
        self,
        *,
        timeout_s: float = SCRIPT_TIMEOUT_S,
        store_socket: str | None,
        log: FilteringBoundLogger,
        scripts_dir: str = SCRIPTS_DIR,
        drivers: Mapping[DeviceClass, type[Driver[Any]]] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._store_socket = store_socket
        self._log = log
        self._scripts_dir = scripts_dir
        self._drivers = {name: driver for name, driver in (drivers or {}).items() if issubclass(driver, Backend)}
        self._turns: dict[str, tuple[asyncio.Lock, list[object]]] = {}

    async def run(
        self,
        script: str,
        action: str,
        *,
        backend_path: str,
        device_class: str,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        """Run a script to its end.

        On cancellation the script's process group is killed before the cancellation is passed on. A script that leaves
        a process behind must give it an output of its own: ours is closed when the script ends.

        Args:
            script: an absolute path, or a bare name in `scripts_dir`.
            action: "add" or "remove".
            backend_path: "/local/domain/0/backend/vbd/3/51712"; the part before "backend" may be missing.
            device_class: the class whose driver says how the script is called.
            variables: further variables for the environment, which only the device's driver knows, such as an
                interface's name.

        Raises:
            HotplugError: the script cannot be run, was killed at the time limit, or exited with another status than 0.
            LocalProtocolError: `action` is no action, or `backend_path` is not a backend's.
        """
        if action not in ("add", "remove"):
            raise LocalProtocolError(f"{action!r}: a hotplug script is run to add or to remove")
        kind, domid, devid = _parts(backend_path)
        driver = self._drivers.get(DeviceClass(device_class), Backend)
        arguments, extra = driver.script_call(action, Domid(int(domid)), Devid(int(devid)))
        path = self._locate(script)
        environ = {**self._environ(kind, domid, devid), **extra, "script": path, **variables}
        async with self._turn(f"{kind}/{domid}/{devid}"):
            started = time.monotonic()
            status, output = await self._execute([path, *arguments], environ)
            lasted_s = round(time.monotonic() - started, 3)
            about = {"device": bus_id(kind, domid, devid), "script": path, "action": arguments[0], "lasted_s": lasted_s}
            if status != 0:
                raise HotplugError(path, status, output)
            self._log.debug("hotplug.finished", **about)

    def _locate(self, script: str) -> str:
        """Return the script's absolute path, after checking that it can be run."""
        if "\0" in script or not (script.startswith("/") or re.fullmatch(r"[^/.][^/]*", script)):
            sentence = f"a script is an absolute path, or the name of a file in {self._scripts_dir}"
            raise HotplugError(script, NOT_FOUND, sentence)
        path = os.path.join(self._scripts_dir, script)
        if not os.path.isfile(path) and os.path.isfile(shipped := os.path.join(SHIPPED_DIR, script)):
            path = shipped
        if not os.path.isfile(path):
            raise HotplugError(path, NOT_FOUND, "there is no such file")
        if not os.access(path, os.X_OK):
            raise HotplugError(path, NOT_EXECUTABLE, f"it is not executable; chmod +x {path}")
        return path

    def _environ(self, kind: str, domid: str, devid: str) -> dict[str, str]:
        """Our own environment with the variables that libxl adds to it."""
        environ = child_environ()
        environ["XENBUS_TYPE"] = kind
        environ["XENBUS_PATH"] = f"backend/{kind}/{domid}/{devid}"
        environ["XENBUS_BASE_PATH"] = "backend"
        if self._store_socket is not None:
            environ["XENSTORED_PATH"] = self._store_socket
        return environ

    @contextlib.asynccontextmanager
    async def _turn(self, device: str) -> AsyncIterator[None]:
        """Wait until no other script of the device runs; the last one to finish removes the device's lock."""
        lock, users = self._turns.setdefault(device, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._turns[device]

    async def _execute(self, argv: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
        """Run a program and return its status, negative for a signal, and the end of its output."""
        try:
            child = Child(argv, env=environ)
        except OSError as error:
            sentence = f"it cannot be run: {error.strerror}; does its first line name an interpreter that exists?"
            raise HotplugError(argv[0], NOT_EXECUTABLE, sentence) from error
        by_itself = await child.finish(self._timeout_s)
        output = child.last_words or "no output"
        if not by_itself:
            return -signal.SIGKILL, f"killed at the time limit of {self._timeout_s:g} s; {output}"
        return child.status or 0, output


def _parts(backend_path: str) -> tuple[str, str, str]:
    """Kind, frontend's domid and devid of a backend's path."""
    found = re.fullmatch(r"(?:/local/domain/\d+/)?backend/([^/]+)/(\d+)/(\d+)", backend_path)
    if found is None or not is_device_class(found[1]):
        raise LocalProtocolError(f"{backend_path!r} is not a backend's path")
    return found[1], found[2], found[3]
