"""Daemons as real processes: stopped in order, and killed in the middle of I/O."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.doubles.disk_programs import disk_uri
from xenbusd.control.protocol import DeviceDetails, DeviceTimeline
from xenbusd.host.sim.client import census
from xenbusd.ids import DOM0, Domid
from xenbusd.testing.processes import ProcessMachine, end, machine

MIB = 1 << 20

needs_nbd = pytest.mark.skipif(shutil.which("nbdcopy") is None, reason="nbdcopy is missing (Debian: libnbd-bin)")


@pytest.fixture
def host() -> Iterator[ProcessMachine]:
    """A simulated host."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, machine(Path(folder)) as host:
        yield host


@pytest.fixture
def dom0(host: ProcessMachine) -> subprocess.Popen[bytes]:
    """Its backends' daemon."""
    return host.serve()


@pytest.fixture
def guest(host: ProcessMachine) -> subprocess.Popen[bytes]:
    """The agent of guest 1."""
    return host.agent(1)


def image(host: ProcessMachine, name: str, mib: int) -> Path:
    """A raw image with contents of its own."""
    path = host.folder / name
    path.write_bytes(hashlib.shake_128(name.encode()).digest(MIB) * mib)
    return path


def attach(host: ProcessMachine, domid: int, path: Path, mode: str = "w") -> str:
    """Attach a disk without a hotplug script; return the device's name."""
    words = ("attach", "vbd", "--domain", str(domid), "--devid", "xvda", f"target={path}", f"mode={mode}", "script=")
    done = host.ctl(*words)
    assert done.returncode == 0, done.stderr + host.logs()
    return f"vbd/{domid}/51712"


def nodes(host: ProcessMachine) -> list[dict[str, object]]:
    """The devices that the store has."""
    listed: list[dict[str, object]] = json.loads(host.ctl("--json", "list").stdout)
    return listed


@needs_nbd
def test_a_guest_killed_in_the_middle_of_io_disturbs_nobody(
    host: ProcessMachine, dom0: subprocess.Popen[bytes], guest: subprocess.Popen[bytes]
) -> None:
    """SIGKILL of an agent under load: the other guest's disk goes on, and detach --force leaves the store clean."""
    host.agent(2)
    first, second = image(host, "first.img", 64), image(host, "second.img", 64)
    victim, survivor = attach(host, 1, first), attach(host, 2, second)
    # a reader that never ends: its output is a pipe that we do not empty
    load = subprocess.Popen(["nbdcopy", disk_uri(host, 1), "-"], stdout=subprocess.PIPE)
    other = subprocess.Popen(["nbdcopy", disk_uri(host, 2), str(host.folder / "copy.img")])
    assert load.stdout is not None
    assert len(load.stdout.read(MIB)) == MIB  # its I/O is under way

    guest.send_signal(signal.SIGKILL)
    guest.wait()
    assert other.wait() == 0
    assert (host.folder / "copy.img").read_bytes() == second.read_bytes()
    load.stdout.close()
    load.wait()

    done = host.ctl("detach", victim, "--force")
    assert done.returncode == 0, done.stderr + host.logs()
    assert [device["device"] for device in nodes(host)] == [survivor]
    assert nodes(host)[0]["backend"] == nodes(host)[0]["frontend"] == "Connected"
    assert subprocess.run(["nbdcopy", disk_uri(host, 2), "null:"], check=False).returncode == 0
    assert dom0.poll() is None
    assert host.ctl("detach", survivor).returncode == 0
    assert nodes(host) == []
    held = census(host.path)[DOM0]
    assert (held.ports, held.grants_mapped) == (0, 0)
    assert Domid(1) not in census(host.path)


@needs_nbd
@pytest.mark.usefixtures("guest")
def test_a_backend_that_is_restarted_adopts_its_rings(host: ProcessMachine, dom0: subprocess.Popen[bytes]) -> None:
    """SIGTERM leaves states at 4; the next daemon adopts them, and a guest's client sees no error (T15)."""
    disk = image(host, "disk.img", 64)
    device = attach(host, 1, disk)
    copier = subprocess.Popen(["nbdcopy", disk_uri(host, 1), "-"], stdout=subprocess.PIPE)
    assert copier.stdout is not None
    digest = hashlib.sha256(copier.stdout.read(8 * MIB))
    assert end(dom0) == 0
    assert [pair["backend"] for pair in nodes(host)] == ["Connected"]
    host.serve()
    while piece := copier.stdout.read(MIB):
        digest.update(piece)
    copier.stdout.close()
    assert copier.wait() == 0
    assert digest.digest() == hashlib.sha256(disk.read_bytes()).digest()
    assert host.ctl("detach", device).returncode == 0
    assert nodes(host) == []


@needs_nbd
@pytest.mark.usefixtures("guest")
def test_a_backend_that_is_killed_loses_no_request(host: ProcessMachine, dom0: subprocess.Popen[bytes]) -> None:
    """SIGKILL in the middle of a copy: the next daemon adopts the ring, and the copy is whole."""
    disk = image(host, "disk.img", 64)
    device = attach(host, 1, disk)
    copier = subprocess.Popen(["nbdcopy", disk_uri(host, 1), "-"], stdout=subprocess.PIPE)
    assert copier.stdout is not None
    digest = hashlib.sha256(copier.stdout.read(8 * MIB))
    dom0.kill()
    dom0.wait()
    host.serve()
    while piece := copier.stdout.read(MIB):
        digest.update(piece)
    copier.stdout.close()
    assert copier.wait() == 0
    assert digest.digest() == hashlib.sha256(disk.read_bytes()).digest()
    assert host.logs().count("device.connected") == 2  # once on each side
    assert "device.adopted" in host.logs()
    assert host.ctl("detach", device).returncode == 0
    assert nodes(host) == []


@needs_nbd
@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_pause_outlives_the_daemon(host: ProcessMachine, dom0: subprocess.Popen[bytes], killed: bool) -> None:
    """A disk is paused, and the daemon ends: the next one holds its requests as well, does not touch the image, and
    serves them once the disk is resumed; the client in the guest sees no error.
    """
    disk = image(host, "disk.img", 8)
    device = attach(host, 1, disk)
    assert host.ctl("pause", device).stdout == f"{device} is paused\n"
    copier = subprocess.Popen(["nbdcopy", disk_uri(host, 1), str(host.folder / "copy.img")])
    while (
        DeviceDetails.from_json(json.loads(host.ctl("--json", "show", device).stdout)["daemon"]).counters["requests"]
        == 0
    ):
        assert copier.poll() is None
    if killed:
        dom0.kill()
        dom0.wait()
    else:
        assert end(dom0) == 0
    host.serve()
    with open(disk, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(b"changed in the pause")
    assert copier.poll() is None
    done = host.ctl("resume", device)
    assert done.returncode == 0, done.stderr + host.logs()
    assert copier.wait() == 0
    assert (host.folder / "copy.img").read_bytes() == disk.read_bytes()
    assert disk.read_bytes()[:7] == b"changed"
    assert host.ctl("detach", device).returncode == 0


@needs_nbd
def test_a_backend_that_is_killed_loses_no_request_of_any_queue(
    host: ProcessMachine, dom0: subprocess.Popen[bytes]
) -> None:
    """SIGKILL in the middle of a copy through three queues, twice: the copy is whole each time; no journal stays."""
    config = host.folder / "agent.toml"
    config.write_text("[drivers.vbd]\nqueues = 3\nring_page_order = 1\n")
    host.agent(1, "--config", str(config))
    disk, copy = image(host, "disk.img", 64), host.folder / "copy.img"
    device = attach(host, 1, disk)
    rings = Path(f"{host.path}.dom0")
    assert sorted(path.name for path in rings.glob("*.ring*")) == [f"vbd-1-51712.ring{n}" for n in ("", 1, 2)]
    for _ in range(2):
        copy.unlink(missing_ok=True)
        copier = subprocess.Popen(["nbdcopy", "--requests=64", disk_uri(host, 1), str(copy)])
        while not copy.exists() or copy.stat().st_blocks < 8 * MIB // 512:
            assert copier.poll() is None
        dom0.kill()
        dom0.wait()
        dom0 = host.serve()
        assert copier.wait() == 0
        assert copy.read_bytes() == disk.read_bytes()
    assert host.logs().count("device.connected") == 2  # once on each side
    assert host.logs().count("device.adopted") == 2
    assert host.ctl("detach", device).returncode == 0
    assert list(rings.glob("*.ring*")) == []


@pytest.mark.usefixtures("guest")
def test_a_ring_that_cannot_be_trusted_is_closed(host: ProcessMachine, dom0: subprocess.Popen[bytes]) -> None:
    """The echo's backend does not promise to answer in order: after SIGKILL its device is closed, and begins again."""
    assert host.ctl("attach", "echo", "--domain", "1", "--devid", "0").returncode == 0
    dom0.kill()
    dom0.wait()
    host.serve()
    answer = b""
    while not answer:  # until the frontend has a ring again, it hangs up, or does not listen
        with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{host.path}.dom1/echo-0.sock")
            sock.sendall(b"again\n")
            answer = sock.recv(100)
    assert answer == b"AGAIN\n"
    assert "device.unclean" in host.logs()


@pytest.mark.usefixtures("dom0")
def test_an_agent_that_is_stopped_closes_its_devices(host: ProcessMachine, guest: subprocess.Popen[bytes]) -> None:
    """SIGTERM of an agent: each of its devices goes through Closing to Closed, and the exit status is 0."""
    done = host.ctl("attach", "echo", "--domain", "1", "--devid", "0")
    assert done.returncode == 0, done.stderr
    assert end(guest) == 0
    timeline = DeviceTimeline.from_json(json.loads(host.ctl("--json", "timeline", "echo/1/0").stdout))
    steps = [(entry.actor, entry.event) for entry in timeline.entries]
    assert ("frontend", "Closing") in steps
    assert ("frontend", "Closed") in steps
    assert steps.index(("backend", "Closing")) < steps.index(("backend", "Closed"))


@pytest.mark.usefixtures("dom0", "guest")
def test_the_echo_answers_through_its_socket(host: ProcessMachine) -> None:
    """A program of the guest writes lines to the frontend's socket and gets the backend's answers."""
    assert host.ctl("attach", "echo", "--domain", "1", "--devid", "7").returncode == 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{host.path}.dom1/echo-7.sock")
        sock.sendall(b"one\ntwo\n")
        answer = b""
        while answer.count(b"\n") < 2:
            answer += sock.recv(100)
    assert answer == b"ONE\nTWO\n"


def test_a_second_daemon_is_refused(host: ProcessMachine, dom0: subprocess.Popen[bytes]) -> None:
    """Two backends on one host would fight: the second says so and exits with 2."""
    command = [sys.executable, "-m", "xenbusd", "serve", "--host", host.spec]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "is in use" in second.stderr
    assert dom0.poll() is None
