"""The installed services, checked by systemd itself; and the wheel, from which most people will install it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from xenbusd.testing.processes import PATIENCE_S, end, machine

ROOT = Path(__file__).parents[3]
PROGRAM = Path(sysconfig.get_path("scripts"), "xenbusd")
UNITS = ("xenbusd.service", "xenbus-agent.service")

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing (Debian: systemd)"
)


def run(*argv: str | Path, **environ: str) -> str:
    """Run a program that must succeed; return what it printed, on both outputs."""
    done = subprocess.run(
        list(map(str, argv)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, f"{argv[0]} ended with {done.returncode}: {done.stdout}"
    return done.stdout


def installed(root: Path, mode: str) -> Path:
    """Both roles, installed into a folder by the real program; the folder of the units."""
    run(PROGRAM, "install", "--root", root, "--mode", mode, "--program", PROGRAM)
    run(PROGRAM, "install", "--root", root, "--agent", "--program", PROGRAM)
    return root / "etc/systemd/system"


def verify(units: Path) -> str:
    """systemd's opinion of both units; empty if there is nothing to say."""
    return run("systemd-analyze", "verify", "--man=yes", *UNITS, SYSTEMD_UNIT_PATH=f"{units}:")


@needs_analyze
@pytest.mark.parametrize("mode", ["exclusive", "arbiter"])
def test_systemd_has_nothing_to_say(tmp_path: Path, mode: str) -> None:
    """Every line of every unit and drop-in is understood, and what they run is there."""
    assert verify(installed(tmp_path, mode)) == ""


@needs_analyze
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Restart=always", "Restart=alwys"),
        ("@aio", "@aoi"),
        (f"ExecStart={PROGRAM}", "ExecStart=/nowhere/xenbusd"),
    ],
)
def test_a_mistake_would_be_seen(tmp_path: Path, right: str, wrong: str) -> None:
    """systemd does say something of a word, a system call group or a program that does not exist."""
    units = installed(tmp_path, "exclusive")
    unit = units / "xenbusd.service"
    text = unit.read_text()
    assert right in text
    unit.write_text(text.replace(right, wrong))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=yes", *UNITS],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
    )
    assert wrong.split("=")[-1].split("/xenbusd")[0] in done.stderr


@pytest.fixture(scope="module")
def hatchling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build backend that pyproject.toml names, in a folder of its own."""
    folder = tmp_path_factory.mktemp("hatchling")
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--target", str(folder)]
    done = subprocess.run([*pip, "hatchling>=1.12"], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"pip cannot fetch hatchling here: {done.stderr.strip()[-300:]}")
    return folder


def test_installed_from_a_wheel(tmp_path: Path, hatchling: Path) -> None:
    """The wheel has everything that `xenbusd install` puts into place: the same files, to the bit, as from the tree."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("xenbusd", "drivers", "hotplug", "systemd"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        check=True, capture_output=True, cwd=source, env={**os.environ, "PYTHONPATH": str(hatchling)},
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", site, wheel)
    shutil.rmtree(source)

    where = run(sys.executable, "-c", "from xenbusd import hotplug; print(hotplug.SHIPPED_DIR)", PYTHONPATH=str(site))
    assert where.strip() == str(site / "xenbusd/_shipped/hotplug")
    roots = {"wheel": site, "tree": ROOT}
    for name, path in roots.items():
        for words in (["--mode", "arbiter"], ["--agent"]):
            command: list[str | Path] = [
                sys.executable,
                "-m",
                "xenbusd",
                "install",
                "--root",
                tmp_path / name,
                "--program",
                PROGRAM,
            ]
            run(*command, *words, PYTHONPATH=f"{path}:{path / 'drivers'}")
    found = {name: contents(tmp_path / name) for name in roots}
    assert found["wheel"] == found["tree"]
    assert len(found["wheel"]) == 8


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, with its mode."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode & 0o777, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_daemon_under_systemd() -> None:
    """serve tells systemd that it is ready, that it lives and that it stops; each line of its log has a priority."""
    with tempfile.TemporaryDirectory(prefix="xb") as name, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        folder = Path(name)
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(PATIENCE_S)
        journal, stderr = socket.socketpair()
        journal.settimeout(PATIENCE_S)
        status = os.fstat(stderr.fileno())
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": "200000",
            "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
        }
        with machine(folder) as host, journal:
            command = [sys.executable, "-m", "xenbusd", "serve", "--host", host.spec]
            with stderr:
                daemon = subprocess.Popen(command, stderr=stderr.fileno(), env=environ)
            try:
                heard = [systemd.recv(4096) for _ in range(4)]
                daemon.terminate()
                while systemd.recv(4096) != b"STOPPING=1\nSTATUS=leaving devices in order":
                    pass
            finally:
                ended = end(daemon)
            lines = journal.makefile("rb").read().splitlines()
    assert ended == 0
    ready = next(message for message in heard if b"READY=1" in message)
    assert re.search(rb"STATUS=backends of .*\bvbd\b", ready)
    assert heard.count(b"WATCHDOG=1") == 3
    assert lines[0].startswith(b"<6>daemon.started ")
    assert all(re.match(rb"<[3-7]>[a-z]+\.[a-z_]+", line) for line in lines), lines
