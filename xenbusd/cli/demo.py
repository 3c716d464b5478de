"""`make demo`: a disk pair at work on a simulated Xen host, each part a process of its own, checked by other programs.

It starts a simulated host, `xenbusd serve` as dom0 and `xenbusd agent` as a guest, and attaches a file system as a vbd.
An NBD client, nbdcopy, reads the whole disk through the pair and then overwrites it with another; checksums and e2fsck
check both.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from xenbusd.bus.paths import parse_name
from xenbusd.control.protocol import DeviceDetails
from xenbusd.errors import XenbusdError
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.testing.processes import ProcessMachine, end, machine

IMAGE_MIB = 64
GUEST = 1
DEVICE = f"vbd/{GUEST}/51712"
FOLDER = re.escape(tempfile.gettempdir()) + r"/xenbusd-demo-\w+/"
"""Matches paths in the demo's own directory; they are left out of the commands that are printed."""

_TOOLS = {
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "xenstore-read": "xenstore-utils",
}


class DemoError(Exception):
    """A step failed; the demo ends with status 1."""


def main() -> None:
    """Run the demo. If a check fails, print the daemons' logs and exit with status 1."""
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if missing:
        sys.exit(f"demo: Debian packages are missing: apt-get install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="xenbusd-demo-") as folder:
        try:
            _demo(Path(folder))
        except (DemoError, OSError, XenbusdError) as error:
            sys.exit(f"demo: FAILED: {error}")


def _demo(folder: Path) -> None:
    began = time.monotonic()
    say("starting a simulated Xen host, xenbusd serve as dom0, xenbusd agent as guest 1")
    with machine(folder) as host:
        daemons = {"dom0": host.serve(), "the guest": host.agent(GUEST)}
        try:
            totals, diagram = _use_a_disk(host)
        except (DemoError, OSError, XenbusdError) as error:
            raise DemoError(f"{error}\n{host.logs()}") from error
        for name in reversed(daemons):
            check((status := end(daemons[name])) == 0, f"{name} ends in order, with status {status}")
    print(
        f"\nWho did what, and when ({DEVICE}):\n\n{diagram}\n"
        f"I/O totals: {totals['requests']} requests, {totals['bytes'] / 2**20:.0f} MiB, {totals['errors']} errors, "
        f"{totals['requests'] / max(1, totals['notifications']):.0f} requests for each notification\n"
        f"demo: all is well, after {time.monotonic() - began:.1f} s"
    )


def _use_a_disk(host: ProcessMachine) -> tuple[Mapping[str, int], str]:
    """Attach a disk, read and overwrite it, and detach it. Return its counters and its event diagram."""
    say(f"making two ext4 images of {IMAGE_MIB} MiB with files in them")
    disk, other = make_image(host.folder, "disk", 1), make_image(host.folder, "other", 2)
    first, second = sha256(disk), sha256(other)
    check(first != second, "the two images differ")

    control(host, "attach", "vbd", "--domain", str(GUEST), "--devid", "xvda", f"target={disk}", "mode=w")
    uri = f"nbd+unix:///?socket={host.run_path(parse_name(DEVICE), 'sock')}"
    run("nbdinfo", uri, quiet=True)

    copy = host.folder / "copy.img"
    run("nbdcopy", uri, str(copy))
    check(sha256(copy) == first, f"nbdcopy read the whole disk through the pair: SHA-256 {first[:16]}… is the same")
    fsck(copy)

    run("nbdcopy", "--flush", str(other), uri)
    check(sha256(disk) == second, f"nbdcopy wrote another one through it: SHA-256 {second[:16]}… is the same")
    fsck(disk)

    shown = json.loads(control(host, "--json", "show", DEVICE, quiet=True))
    totals = DeviceDetails.from_json(shown["daemon"]).counters
    control(host, "detach", DEVICE)
    check(not leftovers(host.store), "nothing of the device is left in the store")
    return totals, control(host, "timeline", DEVICE, quiet=True)


def say(text: str) -> None:
    """Print the next step."""
    print(f"* {text}", flush=True)


def check(good: bool, text: str) -> None:
    """Print a statement if it holds.

    Raises:
        DemoError: it does not hold.
    """
    if not good:
        raise DemoError(f"not true: {text}")
    say(text)


def control(host: ProcessMachine, *arguments: str, quiet: bool = False) -> str:
    """Run xenbusctl, print the command and its output, and return the output.

    Raises:
        DemoError: its exit status is not 0.
    """
    return _report("xenbusctl " + " ".join(arguments), host.ctl(*arguments), quiet)


def run(*command: str, quiet: bool = False) -> str:
    """Run a command, print it with its output, and return the output.

    Raises:
        DemoError: its exit status is not 0.
    """
    return _report(" ".join(command), subprocess.run(command, capture_output=True, text=True, check=False), quiet)


def _report(command: str, done: subprocess.CompletedProcess[str], quiet: bool) -> str:
    if done.returncode:
        raise DemoError(f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    if not quiet:
        say(f"{re.sub(FOLDER, '', command)}: {done.stdout.strip() or 'done'}")
    return done.stdout


def make_image(folder: Path, name: str, seed: int) -> Path:
    """Make an ext4 image that holds a few directories and files."""
    tree = folder / name
    for number in range(40):
        file = tree / f"directory-{number % 7}" / f"file-{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        block = hashlib.sha256(f"{seed} {number}".encode()).digest()
        file.write_bytes(block * (1000 * (number + 1)))
    image = folder / f"{name}.img"
    with open(image, "wb") as file_object:
        file_object.truncate(IMAGE_MIB << 20)
    run("mkfs.ext4", "-q", "-d", str(tree), str(image), quiet=True)
    return image


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsck(image: Path) -> None:
    """Check an image with e2fsck, which changes nothing in it."""
    run("e2fsck", "-fn", str(image), quiet=True)
    say(f"e2fsck -fn {image.name}: clean")


def leftovers(store_path: str) -> list[str]:
    """Names of nodes of the device that are still in the store."""

    async def find() -> list[str]:
        async with StoreClient(unix_endpoint(store_path)) as store:
            return [
                *await store.directory("/local/domain/0/backend"),
                *await store.directory(f"/local/domain/{GUEST}/device"),
            ]

    return asyncio.run(find())


if __name__ == "__main__":
    main()
