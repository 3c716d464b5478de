"""The image server's process: its start, the errors that stand for its end, and that it does not outlive the daemon."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.doubles.nbd_bench import HANDSHAKE, until
from tests.doubles.programs import SERVER, install
from xenbusd.api import ResourceError
from xenbusd_vbd.image import server as server_module
from xenbusd_vbd.image.formats import Target
from xenbusd_vbd.image.server import ImageServer, RemoteServer, complaint, environ, find, take_lock
from xenbusd_vbd.nbd.address import Address

GREETING, *ANSWERS = HANDSHAKE


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """An image; the stand-ins do not read it."""
    (tmp_path / "image").write_bytes(bytes(4096))
    return Target("qcow2", str(tmp_path / "image"), True)


def server(before: str = "", after: str = "client.recv(1)") -> str:
    """A program that listens as qemu-nbd does."""
    return SERVER.format(before=before, greeting=GREETING, answers=ANSWERS, after=after)


def alive(pid: int) -> bool:
    """Whether a process is there, and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_it_is_started_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    """Its socket is its owner's alone; after `close` neither process nor socket is left, and the image is free."""
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", server())
    path = tmp_path / "s"
    image = ImageServer(target, str(path))
    sock, export = await image.open()
    assert export.size_bytes == 1 << 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pid = image.pid
    assert pid is not None
    assert alive(pid)
    sock.close()
    await image.close()
    await image.close()
    assert not alive(pid)
    assert not path.exists()
    os.close(take_lock(target) or -1)


async def test_each_connection_has_a_server_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    """The one before is ended first, so that no two work on the image."""
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", server())
    image = ImageServer(target, str(tmp_path / "s"))
    first, _ = await image.open()
    pid = image.pid
    assert pid is not None
    second, _ = await image.open()
    assert image.pid != pid
    assert not alive(pid)
    assert first.recv(1) == b""
    first.close()
    second.close()
    await image.close()


async def test_one_that_forgets_a_signal_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    """qemu-nbd forgets a SIGTERM that comes while it starts."""
    forgetful = "seen = []\ndef term(*_):\n    seen.append(1)\n    len(seen) > 1 and os._exit(0)\n"
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", server(forgetful + "signal.signal(signal.SIGTERM, term)"))
    image = ImageServer(target, str(tmp_path / "s"))
    sock, _ = await image.open()
    process = image._process
    assert process is not None
    await image.close()
    assert process.status == 0
    sock.close()


async def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    """A server that does not end is killed at the limit."""
    monkeypatch.setattr(server_module, "STOP_S", 0.3)
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", server("signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    image = ImageServer(target, str(tmp_path / "s"))
    sock, _ = await image.open()
    process = image._process
    assert process is not None
    await image.close()
    assert process.status == -9
    sock.close()


@pytest.mark.parametrize(
    ("program", "sentence", "code"),
    [
        ("import sys; sys.exit('qemu-nbd: Failed to get \"write\" lock')", "write", errno.EBUSY),
        ("import sys; sys.exit('x' * 5000 + '\\nno idea')", ": no idea", errno.EIO),
        ("import sys; sys.exit(3)", "status 3, without a message", errno.EIO),
        ("import os; os.kill(os.getpid(), 9)", "signal 9", errno.EIO),
        (server(before="print('it is sick', file=sys.stderr, flush=True)").replace("NBDMAGIC", "XXXMAGIC"), "sick", 5),
    ],
)
async def test_why_it_did_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target, program: str, sentence: str, code: int
) -> None:
    """The server's own words are in the error, the last of them if there are many; nothing is left of it."""
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", program)
    image = ImageServer(target, str(tmp_path / "s"))
    with pytest.raises(ResourceError) as caught:
        await image.open()
    assert sentence in str(caught.value)
    assert target.path in str(caught.value)
    assert (caught.value.errno, len(str(caught.value)) < 2500, image.pid) == (code, True, None)
    await image.close()


async def test_one_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    """It is ended after the limit, and the error says that no server answered."""
    monkeypatch.setattr(server_module, "START_S", 0.2)
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", "import signal\nsignal.pause()\n")
    image = ImageServer(target, str(tmp_path / "s"))
    with pytest.raises(ResourceError, match="no NBD server answers"):
        await image.open()
    assert image.pid is None
    await image.close()


async def test_the_lock_is_the_servers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    """When the daemon is gone, the image stays locked until the server has ended."""
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", server())
    image = ImageServer(target, str(tmp_path / "s"))
    with pytest.raises(ResourceError, match="in use") as caught:
        take_lock(target)
    assert caught.value.errno == errno.EBUSY
    sock, _ = await image.open()
    assert image._lock is not None
    os.close(image._lock)
    image._lock = None
    with pytest.raises(ResourceError, match="in use"):
        take_lock(target)
    sock.close()
    await image.close()
    fd = take_lock(target)
    assert fd is not None
    os.close(fd)


def test_locks(target: Target) -> None:
    """Readers share, a shared reader takes none, and a file that cannot be served is not locked but refused."""
    reader = target._replace(writable=False)
    fds = [take_lock(reader), take_lock(reader)]
    assert take_lock(target._replace(writable=False, shared=True)) is not None
    with pytest.raises(ResourceError, match="in use"):
        take_lock(target)
    for fd in fds:
        assert fd is not None
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(fd)
    for path, sentence in (("/nonexistent/x", "cannot open"), ("/dev/null", "neither"), ("/", "cannot open")):
        with pytest.raises(ResourceError, match=sentence):
            take_lock(target._replace(path=path))
    assert take_lock(Target("nbdkit", "memory size=1M", True)) is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names Debian's package."""
    monkeypatch.setattr("shutil.which", lambda *_args, **_kwargs: None)
    for program, package in (("qemu-nbd", "qemu-utils"), ("nbdkit", "nbdkit"), ("setpriv", "util-linux")):
        with pytest.raises(ResourceError, match=f"{program} is not installed: as root, apt-get install {package}"):
            find(program)
    del tmp_path


def test_what_systemd_said_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """LISTEN_FDS would make a server take our descriptors for its sockets."""
    for name in ("LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    assert environ()["LC_ALL"] == "C"
    assert not [name for name in environ() if name.startswith(("LISTEN", "NOTIFY", "WATCHDOG"))]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Permission denied", errno.EACCES),
        ("No such file or directory", errno.ENOENT),
        ("Image is not in qcow2 format", errno.EINVAL),
        ("Image is corrupt; cannot be opened read/write", errno.EUCLEAN),
        ("", errno.EIO),
    ],
)
def test_the_errno_of_a_server_s_message(target: Target, words: str, code: int) -> None:
    """A program's message decides the errno for the error node."""
    assert complaint(target, "qemu-nbd", 1, words).errno == code


async def test_somebody_elses_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answers is given up at a deadline."""
    monkeypatch.setattr(server_module, "ANSWER_S", 0.05)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        remote = RemoteServer(Address(path=path))
        for ask in (remote.open, remote.inquire):
            with pytest.raises(ResourceError, match="has not answered"):
                await ask()
    await remote.close()


async def test_its_end_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    """The end of a server is noticed though no task waits for it."""
    install(tmp_path / "bin", monkeypatch, "qemu-nbd", server(after="sys.exit(7)"))
    image = ImageServer(target, str(tmp_path / "s"))
    sock, _ = await image.open()
    process = image._process
    assert process is not None
    await until(lambda: process.status is not None)
    assert process.status == 7
    sock.close()
    await image.close()
