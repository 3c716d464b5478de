"""Tools for tests in dom0: the daemons of this package, Xen's own tools, and guests."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from xenbusd.bus.paths import DeviceId
from xenbusd.host.gnttab import GNTALLOC
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid

T = TypeVar("T")

OUT = Path("/mnt/out")
XVDA = Devid(51712)
ALL = bool(os.environ.get("XENBUSD_ALL"))
"""Whether long cases run in full (`make xen-test ALL=1`), and not as a short representative."""
SLOW = 4.0
"""Emulation makes everything slower; deadlines of ours are multiplied by this."""


def device(device_class: str, devid: int, domid: int = 0) -> DeviceId:
    """A device whose backend is in dom0."""
    return DeviceId(DeviceClass(device_class), Domid(domid), Devid(devid), DOM0)


def run(*argv: str | Path, timeout_s: float = 60.0, fails: bool = False) -> str:
    """Run a program to its end; return what it printed, on both outputs. It must succeed; or fail, if `fails`."""
    done = subprocess.run(
        list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=timeout_s, check=False,
    )  # fmt: skip
    print(f"$ {' '.join(map(str, argv))}  -> {done.returncode}\n{done.stdout}")
    assert (done.returncode != 0) == fails, f"{argv[0]} ended with {done.returncode}: {done.stdout[-2000:]}"
    return done.stdout


def until(look: Callable[[], T | None], what: str, timeout_s: float = 60.0) -> T:
    """Poll until the result is true: for changes that send no event."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (seen := look()) is not None:
            return seen
        time.sleep(0.1)
    raise AssertionError(f"no {what} within {timeout_s:g} s")


def sum_of(path: str | Path) -> str:
    """SHA-256 of a file or device."""
    return run("sha256sum", path).split()[0]


def random_image(path: Path, size_bytes: int) -> Path:
    """Make an image of random bytes."""
    path.write_bytes(os.urandom(size_bytes))
    return path


class Daemon:
    """A running `xenbusd serve` or `agent`; its log is in /mnt/out."""

    def __init__(self, side: str, run_dir: Path, *options: str) -> None:
        self.run_dir = run_dir
        self._stopped = False
        self._log = OUT / f"{side}-{time.monotonic_ns()}.log"
        argv = [sys.executable, "-m", "xenbusd", side, "--host", "xen", "--run-dir", str(run_dir), *options]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen([*argv, "--log-level", "debug"], stdin=subprocess.DEVNULL, stderr=log)

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def open_files(self) -> list[str]:
        """What its descriptors lead to, without numbers, its log, and /dev/xen/gntalloc, which once opened stays. What
        is open for a moment only does not count: two readings have to agree."""
        looks = [self._open_files()]

        def look() -> list[str] | None:
            looks.append(self._open_files())
            return looks[-1] if looks[-1] == looks[-2] else None

        return until(look, "two readings of its files that agree")

    def _open_files(self) -> list[str]:
        links = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(os.readlink(entry))
        links = [link for link in links if link not in (GNTALLOC, str(self._log)) and not link.startswith("/sys/")]
        return sorted(re.sub(r"\[\d+\]", "", link) for link in links)

    def wait_files(self, files: list[str]) -> None:
        """Wait until it has as many files open as it had, and the same."""
        before = Counter(files)
        try:
            until(lambda: True if self.open_files == files else None, "return to the files before", 10 * SLOW)
        except AssertionError:
            now = Counter(self.open_files)
            raise AssertionError(f"of the files open before it lacks {before - now}, and has {now - before}") from None

    def _started(self) -> bool | None:
        assert self._process.poll() is None, f"it ended with {self._process.returncode}: {self.log}"
        return True if "daemon.started" in self.log else None

    def wait_started(self) -> None:
        """Wait until it serves."""
        until(self._started, "daemon.started")

    def stop(self) -> None:
        """End it as a service manager would; it must leave in order. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._process.terminate()
        status = self._process.wait(30 * SLOW)
        print(self.log)
        assert status == 0, f"ended with {status}"

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        self._stopped = True
        self._process.kill()
        self._process.wait(30 * SLOW)
        print(self.log)


@contextlib.contextmanager
def daemon(side: str, run_dir: Path, *options: str) -> Iterator[Daemon]:
    """A daemon for a while."""
    process = Daemon(side, run_dir, *options)
    try:
        process.wait_started()
        yield process
    finally:
        process.stop()


class Guest:
    """A PV domain with this host's own kernel, running one of the jobs in guest/.

    Args:
        name: for xl.
        job: the job's name.
        disks: as in xl's `disk=`.
        python: whether it has Python and this package.
        memory_mb: its memory; by default enough.
        on_reboot: what xl does when it wants to begin again: destroy or restart.
        more: lines for its configuration.
    """

    def __init__(
        self,
        name: str,
        job: str,
        disks: list[str],
        *,
        python: bool = False,
        memory_mb: int | None = None,
        on_reboot: str = "destroy",
        more: str = "",
    ) -> None:
        self.name = name
        self.config = Path(f"/tmp/{name}.cfg")
        """For xl."""
        parts = ["base", "python", "tree"] if python else ["base"]
        self._ramdisk = Path(f"/tmp/{name}.cpio")
        self._ramdisk.write_bytes(b"".join((OUT / "ramdisks" / f"{part}.cpio").read_bytes() for part in parts))
        self.config.write_text(
            f'name = "{name}"\nkernel = "{next(Path("/boot").glob("vmlinuz-*"))}"\nramdisk = "{self._ramdisk}"\n'
            f"memory = {memory_mb or (768 if python else 512)}\nvcpus = 1\n"
            f'extra = "console=hvc0 quiet mitigations=off job={job}"\ndisk = {disks!r}\n'
            f'on_poweroff = "destroy"\non_crash = "destroy"\non_reboot = "{on_reboot}"\n{more}'
        )

    def create(self, *, fails: bool = False) -> str:
        """Have xl make and start it, or try to; return what xl said."""
        return run("xl", "-vvv", "create", self.config, timeout_s=120, fails=fails)

    @property
    def domid(self) -> Domid:
        """Its number, while it lives."""
        return Domid(int(run("xl", "domid", self.name)))

    @property
    def console(self) -> str:
        """What it has printed."""
        path = OUT / "consoles" / f"guest-{self.name}.log"
        return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> re.Match[str]:
        """Wait until a line of its console matches."""
        try:
            return until(lambda: re.search(pattern, self.console, re.M), f"{pattern!r} on its console", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.console[-4000:]}") from None

    def wait_gone(self, timeout_s: float = 60.0) -> None:
        """Wait until there is no such domain any more, not even a dying one."""
        until(lambda: True if self.name not in run("xl", "list") else None, f"end of {self.name}", timeout_s)

    def destroy(self) -> None:
        """Destroy it, if it is still there. It cannot be made again."""
        if self.name in run("xl", "list"):
            run("xl", "destroy", self.name)
        self._ramdisk.unlink(missing_ok=True)


@contextlib.contextmanager
def living(guest: Guest) -> Iterator[str]:
    """A guest for a while; what is yielded is what xl said when it made it."""
    try:
        yield guest.create()
    finally:
        print(guest.console)
        guest.destroy()


def grants_in_use() -> list[str]:
    """The grants that somebody has mapped now, as the hypervisor says, but for those of a guest's console and store,
    which are its first two (GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE)."""
    run("xl", "dmesg", "-c")
    run("xl", "debug-keys", "g")
    said = run("xl", "dmesg")
    return re.findall(r"^\(XEN\) \[0x(?!00[01]\])[0-9a-f]+\].*$", said, re.M)


def assert_nothing_left(*alive: Guest) -> None:
    """No domain but dom0 and those alive, not even a dying one; no device in the store; no grant mapped."""
    domains = run("xl", "list").splitlines()
    assert len(domains) == 2 + len(alive), domains
    assert "(null)" not in "".join(domains)
    store = run("xenstore-ls", "-f")
    lines = [line for line in store.splitlines() if re.match(r"/local/domain/\d+/(backend|device|error)/", line)]
    if alive:  # xl gives each domain a console, and a way to be suspended
        lines = [line for line in lines if not re.match(r"/local/domain/\d+/(backend/console|device/suspend)\b", line)]
    assert not lines, store
    assert grants_in_use() == []
