"""Both ends in dom0, on the real hypervisor, the real event channels and the real store."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.dom0 import XVDA, Daemon, assert_nothing_left, daemon, device, grants_in_use, random_image, run, sum_of
from xenbusd import toolstack
from xenbusd.host.real import store_endpoint
from xenbusd.store.client import StoreClient

one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])
"""The daemons choose their own loop; the test's makes no difference."""

DISK_BYTES = 32 << 20


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The frontends, in the same domain."""
    with daemon("agent", tmp_path_factory.mktemp("agent")) as process:
        yield process


def test_real_host_interface_conforms() -> None:
    """Domain 0 grants to itself and binds to itself: every rule of the conformance suite holds, none is skipped."""
    suite = [f"tests/machine/host/test_conformance_{part}.py" for part in ("grants", "events")]
    pytest_in_dom0 = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    known = ["-W", "ignore:unclosed file:ResourceWarning:pyxs.client"]
    said = run(*pytest_in_dom0, *known, *suite, "-k", "real", timeout_s=300)
    passed = re.search(r"^=* ?(\d+) passed", said, re.M)
    assert passed is not None
    assert int(passed[1]) >= 29
    assert "skipped" not in said


@one_loop
@pytest.mark.usefixtures("each_store")
async def test_echo(serve: Daemon, agent: Daemon) -> None:
    """A line goes from a program through the frontend, the ring and the backend, and comes back in upper case."""
    echo = device("echo", 0)
    files = serve.open_files, agent.open_files
    async with StoreClient(store_endpoint()) as store:
        await toolstack.attach(store, echo, {}, {})
        await toolstack.wait_connected(store, echo, deadline_s=60)
        reader, writer = await asyncio.open_unix_connection(str(agent.run_dir / "echo-0.sock"))
        for number in range(200):
            writer.write(b"line %d on real xen\n" % number)
            await writer.drain()
            assert await reader.readline() == b"LINE %d ON REAL XEN\n" % number
        writer.close()
        await writer.wait_closed()
        await toolstack.detach(store, echo, deadline_s=60)
    assert_nothing_left()
    assert (serve.open_files, agent.open_files) == files


@one_loop
@pytest.mark.usefixtures("each_store", "serve")
async def test_vbd(agent: Daemon, tmp_path: Path) -> None:
    """A real NBD client reads a whole disk and writes another one over it; all three sums are as they should be."""
    disk = random_image(tmp_path / "disk.img", DISK_BYTES)
    other = random_image(tmp_path / "other.img", DISK_BYTES)
    before, copy = sum_of(disk), tmp_path / "copy.img"
    vbd = device("vbd", XVDA)
    async with StoreClient(store_endpoint()) as store:
        back = {"params": str(disk), "mode": "w", "type": "phy", "device-type": "disk", "dev": "xvda"}
        await toolstack.attach(store, vbd, back, {"virtual-device": str(XVDA), "device-type": "disk"})
        await toolstack.wait_connected(store, vbd, deadline_s=60)
        uri = f"nbd+unix:///?socket={agent.run_dir}/vbd-{XVDA}.sock"
        assert int(await asyncio.to_thread(run, "nbdinfo", "--size", uri)) == DISK_BYTES
        await asyncio.to_thread(run, "nbdcopy", uri, copy)
        assert sum_of(copy) == before
        await asyncio.to_thread(run, "nbdcopy", "--flush", other, uri)
        assert len(grants_in_use()) > 32  # the ring, and pages that stay mapped: proof that the census sees any
        await toolstack.detach(store, vbd, deadline_s=60)
    assert sum_of(disk) == sum_of(other) != before
    assert_nothing_left()
