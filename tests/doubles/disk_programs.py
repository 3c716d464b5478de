"""Programs of other projects that use a frontend's disk through its NBD export."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.doubles.disk_pair import DEVID
from xenbusd.bus.paths import parse_name
from xenbusd.testing import Process
from xenbusd.testing.processes import ProcessMachine


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Skip a test whose peer is not installed, and say which Debian package has it."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program}: apt-get install {package}")


def fio_has_nbd() -> bool:
    """Return whether fio is there with its nbd engine."""
    if shutil.which("fio") is None:
        return False
    listed = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=False)
    return "nbd" in listed.stdout.split()


needs_nbdinfo = needs("nbdinfo", "libnbd-bin")
needs_nbdcopy = needs("nbdcopy", "libnbd-bin")
needs_qemu_io = needs("qemu-io", "qemu-utils")


async def run(*argv: str, status: int = 0) -> str:
    """Run a program to its end; return what it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == status, f"{argv[0]} exited with {process.returncode}: {output.decode()}"
    return output.decode()


def uri(guest: Process) -> str:
    """The disk's NBD address."""
    return f"nbd+unix:///?socket={guest.services.run_dir}/vbd-{DEVID}.sock"


def disk_uri(host: ProcessMachine, domid: int) -> str:
    """The NBD address of a guest's disk, on a machine of processes."""
    return f"nbd+unix:///?socket={host.run_path(parse_name(f'vbd/{domid}/{DEVID}'), 'sock')}"


async def nbdinfo(guest: Process) -> dict[str, Any]:
    """What nbdinfo says of the disk."""
    (export,) = json.loads(await run("nbdinfo", "--json", uri(guest)))["exports"]
    assert isinstance(export, dict)
    return export


async def qemu_io(guest: Process, *steps: str, status: int = 0) -> str:
    """Have qemu-io do some steps."""
    words = [word for step in steps for word in ("-c", step)]
    return await run("qemu-io", "-f", "raw", *words, uri(guest), status=status)
