"""A simulated machine whose parts are real processes: for demonstrations, benchmarks, and tests that kill processes.

with machine(folder) as host:
    host.serve()
    guest = host.agent(1)
    host.ctl("attach", "echo", "--domain", "1", "--devid", "0")
    guest.kill()
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import Side
from xenbusd.config import Config, DaemonConfig
from xenbusd.errors import XenbusdError
from xenbusd.ids import DOM0, Domid
from xenbusd.process.listener import answers

PATIENCE_S = 20.0
"""Seconds that a process may take to start, or to end."""


class ProcessMachine:
    """A running simulated host. Made by `machine`.

    Args:
        folder: for sockets and logs; its path is short, as paths of UNIX sockets must be.
        stack: ends every process that is started.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.path = str(folder / "host")
        self.spec = f"sim:{self.path}"
        """The value of `--host`."""
        self.store = self.path + ".store"
        """The store's socket for dom0, and for Xen's own tools."""
        self._config = Config(DaemonConfig(host=self.spec))
        self._stack = stack

    def start(self, name: str, *arguments: str, ready: str) -> subprocess.Popen[bytes]:
        """Run `xenbusd ARGUMENTS`, with its log in NAME.log, and wait until it answers at the socket `ready`.

        Raises:
            XenbusdError: the program ended instead, or takes too long; the message contains its log.
        """
        log_path = self.folder / f"{name}.log"
        with open(log_path, "ab") as log:
            child = subprocess.Popen([sys.executable, "-m", "xenbusd", *arguments], stdout=log, stderr=log)
        self._stack.callback(end, child)
        deadline = time.monotonic() + PATIENCE_S
        while not answers(ready):
            if child.poll() is not None or time.monotonic() > deadline:
                raise XenbusdError(f"{name} did not start:\n{log_path.read_text(errors='replace')}")
            time.sleep(0.01)
        return child

    def serve(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start dom0's backends."""
        return self.start("dom0", "serve", "--host", self.spec, *arguments, ready=self._config.control_socket(DOM0))

    def agent(self, domid: int, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the frontends of a guest."""
        command = ("agent", "--host", self.spec, "--domid", str(domid), *arguments)
        return self.start(f"guest{domid}", *command, ready=self._config.control_socket(Domid(domid)))

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `xenbusctl ARGUMENTS` to its end."""
        command = [sys.executable, "-m", "xenbusd.cli.ctl", "--host", self.spec, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def run_path(self, id: DeviceId, suffix: str) -> str:
        """A file that the frontend of a device has in its domain's run directory, such as vbd-51712.sock."""
        return id.run_path(Side.FRONTEND, self._config.run_dir(id.frontend_domid), suffix)

    def logs(self) -> str:
        """The logs of all processes."""
        return "".join(
            f"--- {log.name}\n{log.read_text(errors='replace')}" for log in sorted(self.folder.glob("*.log"))
        )


@contextmanager
def machine(folder: Path) -> Iterator[ProcessMachine]:
    """Run a simulated host, without daemons yet, for the length of the block. Every process started on it ends then.

    Raises:
        XenbusdError: the host does not start.
    """
    with ExitStack() as stack:
        host = ProcessMachine(folder, stack)
        host.start("sim", "sim", "--socket", host.path, ready=host.store)
        yield host


def end(child: subprocess.Popen[bytes]) -> int:
    """End a process by SIGTERM, or by SIGKILL if that takes too long. Return its exit status; negative for a signal."""
    child.terminate()
    try:
        return child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
