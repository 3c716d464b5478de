"""`make demo`: a disk pair at work on a simulated Xen host, every part of it a process of its own, checked by others.

A simulated host, `xenbusd serve` as dom0 and `xenbusd agent` as a guest are started; a file system is attached as a
vbd; a real NBD client reads the whole disk through the pair and writes another one; sums and e2fsck check both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import unix_endpoint

IMAGE_MIB = 64
GUEST = 1
DEVICE = f"vbd/{GUEST}/51712"
START_S = 20.0

_TOOLS = {
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "xenstore-read": "xenstore-utils",
}


class DemoError(Exception):
    """A step went wrong; the demo fails loudly."""


def main() -> None:
    """Run the demo; exit 1, and show the daemons' logs, if anything is not as it should be."""
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if missing:
        sys.exit(f"demo: Debian packages are missing: apt-get install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="xenbusd-demo-") as folder:
        try:
            _demo(Path(folder))
        except (DemoError, OSError) as error:
            for log in sorted(Path(folder).glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')}", file=sys.stderr)
            sys.exit(f"demo: FAILED: {error}")


def _demo(folder: Path) -> None:
    host = str(folder / "host")
    began = time.monotonic()
    with ExitStack() as stack:
        say("starting a simulated Xen host, xenbusd serve as dom0, xenbusd agent as guest 1")
        stack.enter_context(process(folder, "sim", "sim", "--socket", host))
        wait_for_socket(host + ".store")
        stack.enter_context(process(folder, "dom0", "serve", "--host", f"sim:{host}"))
        stack.enter_context(process(folder, "guest", "agent", "--host", f"sim:{host}", "--domid", str(GUEST)))
        wait_for_socket(host + ".dom0/control.sock")
        wait_for_socket(f"{host}.dom{GUEST}/control.sock")

        say(f"making two ext4 images of {IMAGE_MIB} MiB with files in them")
        disk, other = make_image(folder, "disk", 1), make_image(folder, "other", 2)
        first, second = sha256(disk), sha256(other)
        check(first != second, "the two images differ")

        ctl = [sys.executable, "-m", "xenbusd.cli.ctl", "--host", f"sim:{host}"]
        run(*ctl, "attach", "vbd", "--domain", str(GUEST), "--devid", "xvda", f"target={disk}", "mode=w")
        uri = f"nbd+unix:///?socket={host}.dom{GUEST}/vbd-51712.sock"
        run("nbdinfo", uri, quiet=True)

        copy = folder / "copy.img"
        run("nbdcopy", uri, str(copy))
        check(sha256(copy) == first, f"nbdcopy read the whole disk through the pair: SHA-256 {first[:16]}… is the same")
        fsck(copy)

        run("nbdcopy", "--flush", str(other), uri)
        check(sha256(disk) == second, f"nbdcopy wrote another one through it: SHA-256 {second[:16]}… is the same")
        fsck(disk)

        totals = json.loads(run(*ctl, "--json", "show", DEVICE, quiet=True))["daemon"]
        run(*ctl, "detach", DEVICE)
        check(not leftovers(host), "nothing of the device is left in the store")
        diagram = run(*ctl, "timeline", DEVICE, quiet=True)
        print(f"\nWho did what, and when ({DEVICE}):\n\n{diagram}")
    mib = totals["bytes"] / 2**20
    print(
        f"I/O totals: {totals['requests']} requests, {mib:.0f} MiB, {totals['errors']} errors, "
        f"{totals['notifications']} notifications sent by the backend; "
        f"{totals['requests'] / max(1, totals['notifications']):.0f} requests for each\n"
        f"demo: all is well, after {time.monotonic() - began:.1f} s"
    )


def say(text: str) -> None:
    """Tell what happens next."""
    print(f"* {text}", flush=True)


def check(good: bool, text: str) -> None:
    """Insist on something.

    Raises:
        DemoError: it is not so.
    """
    if not good:
        raise DemoError(f"not so: {text}")
    say(text)


@contextmanager
def process(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a xenbusd process for the length of the block; it must end well when told to.

    Raises:
        DemoError: it did not.
    """
    with open(folder / f"{name}.log", "wb") as log:
        child = subprocess.Popen([sys.executable, "-m", "xenbusd", *arguments], stdout=log, stderr=log)
    try:
        yield child
        child.terminate()
        if (status := child.wait(START_S)) != 0:
            raise DemoError(f"{name} ended with status {status}")
    finally:
        child.kill()
        child.wait()


def wait_for_socket(path: str) -> None:
    """Wait for a daemon that has just been started.

    Raises:
        DemoError: it takes too long.
    """
    deadline = time.monotonic() + START_S
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise DemoError(f"{path} does not appear")
        time.sleep(0.02)


def run(*command: str, quiet: bool = False) -> str:
    """Run a command, show it, and return what it printed.

    Raises:
        DemoError: it failed.
    """
    shown = " ".join(command).replace(f"{sys.executable} -m xenbusd.cli.ctl", "xenbusctl")
    shown = shown.replace(tempfile.gettempdir() + "/", "")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"{shown}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    if not quiet:
        say(f"{shown}: {done.stdout.strip() or 'done'}")
    return done.stdout


def make_image(folder: Path, name: str, seed: int) -> Path:
    """Make an ext4 image with some directories and files in it."""
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
    """Have e2fsck look at an image without changing it."""
    run("e2fsck", "-fn", str(image), quiet=True)
    say(f"e2fsck -fn {image.name}: clean")


def leftovers(host: str) -> list[str]:
    """What is left of the device in the store."""
    import asyncio

    async def find() -> list[str]:
        async with StoreClient(unix_endpoint(host + ".store")) as store:
            return [
                *await store.directory("/local/domain/0/backend"),
                *await store.directory(f"/local/domain/{GUEST}/device"),
            ]

    return asyncio.run(find())


if __name__ == "__main__":
    main()
