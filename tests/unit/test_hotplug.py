"""xenbusd.hotplug: scripts are called as libxl calls them, bounded in time and number (T25). The scripts are real."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from xenbusd import log
from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.driver import Backend, Driver, ScriptCall
from xenbusd.errors import HotplugError, LocalProtocolError
from xenbusd.hotplug import ScriptRunner
from xenbusd.ids import DeviceClass, Devid, Domid

VBD = "/local/domain/0/backend/vbd/3/51712"

Script = Callable[..., str]


class VifBackend(Backend, device_class="vif"):
    """As far as its scripts go, a backend of network interfaces."""

    @classmethod
    def script_call(cls, action: str, domid: Domid, devid: Devid) -> ScriptCall:
        """As libxl__hotplug_nic has it."""
        variables = {"vif": f"vif{domid}.{devid}", "netdev": ""}
        return ScriptCall(("online" if action == "add" else "offline", "type_if=vif"), variables)

    async def run(self, dev: BackendDevice) -> None:
        """Never called."""


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes a shell script in the scripts folder and returns its path."""

    def make(body: str, name: str = "block-test") -> str:
        folder = tmp_path / "scripts"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\ncd '{tmp_path}' || exit 99\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def runner(tmp_path: Path) -> ScriptRunner:
    """A runner with a long limit, which no test reaches."""
    drivers: dict[DeviceClass, type[Driver[Any]]] = {VifBackend.device_class: VifBackend}
    return ScriptRunner(
        timeout_s=60, store_socket=None, log=log.get(), scripts_dir=str(tmp_path / "scripts"), drivers=drivers
    )


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A pipe with a name, to meet a script at a certain point of it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def shown(path: Path) -> dict[str, str]:
    """What the command `env > file` left."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)


async def test_t25_block_script(runner: ScriptRunner, script: Script, tmp_path: Path) -> None:
    """T25: a disk's script gets add or remove, and libxl's four variables with the path relative."""
    path = script('echo "$#:$*" > args; env > environ')
    await runner.run(path, "add", backend_path=VBD, device_class="vbd")
    assert (tmp_path / "args").read_text() == "1:add\n"
    environ = shown(tmp_path / "environ")
    assert environ["script"] == path
    assert environ["XENBUS_TYPE"] == "vbd"
    assert environ["XENBUS_PATH"] == "backend/vbd/3/51712"
    assert environ["XENBUS_BASE_PATH"] == "backend"
    assert "vif" not in environ
    await runner.run(path, "remove", backend_path=VBD, device_class="vbd")
    assert (tmp_path / "args").read_text() == "1:remove\n"


async def test_t25_vif_script(runner: ScriptRunner, script: Script, tmp_path: Path) -> None:
    """T25: a network interface's script gets online or offline and type_if=vif, and vif and netdev besides: its driver
    says so, and what is known of one device alone goes before that."""
    path = script('echo "$#:$*" > args; env > environ')
    await runner.run(path, "add", backend_path="backend/vif/7/1", device_class="vif")
    assert (tmp_path / "args").read_text() == "2:online type_if=vif\n"
    environ = shown(tmp_path / "environ")
    assert (environ["vif"], environ["netdev"]) == ("vif7.1", "")
    assert environ["XENBUS_PATH"] == "backend/vif/7/1"
    await runner.run(path, "remove", backend_path="backend/vif/7/1", device_class="vif", variables={"netdev": "eth0"})
    assert (tmp_path / "args").read_text() == "2:offline type_if=vif\n"
    environ = shown(tmp_path / "environ")
    assert (environ["vif"], environ["netdev"]) == ("vif7.1", "eth0")


async def test_t25_type_is_the_backends_kind(runner: ScriptRunner, script: Script, tmp_path: Path) -> None:
    """T25: XENBUS_TYPE is the folder's name (vbd3), not the class that the guest sees (vbd)."""
    await runner.run(script("env > environ"), "add", backend_path="backend/vbd3/3/51712", device_class="vbd")
    assert shown(tmp_path / "environ")["XENBUS_TYPE"] == "vbd3"


async def test_t25_stdin_is_empty(runner: ScriptRunner, script: Script) -> None:
    """T25: a script that reads its input finds the end of it at once."""
    await runner.run(script("read x && exit 1; exit 0"), "add", backend_path=VBD, device_class="vbd")


async def test_environment_passes_through(
    runner: ScriptRunner, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script inherits our environment as from libxl, but not what systemd meant for us alone."""
    monkeypatch.setenv("LOCAL_SETTING", "yes")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.delenv("XENSTORED_PATH", raising=False)
    await runner.run(script("env > environ"), "add", backend_path=VBD, device_class="vbd")
    environ = shown(tmp_path / "environ")
    assert environ["LOCAL_SETTING"] == "yes"
    assert "NOTIFY_SOCKET" not in environ
    assert "XENSTORED_PATH" not in environ


async def test_store_socket_is_passed_on(script: Script, tmp_path: Path) -> None:
    """Where the store is not in its usual place, xenstore-read in the script finds it by XENSTORED_PATH."""
    runner = ScriptRunner(store_socket="/run/other/socket", log=log.get())
    await runner.run(script("env > environ"), "add", backend_path=VBD, device_class="vbd")
    assert shown(tmp_path / "environ")["XENSTORED_PATH"] == "/run/other/socket"


async def test_bare_name_is_looked_up(runner: ScriptRunner, script: Script, tmp_path: Path) -> None:
    """A name without a slash is a file in the scripts folder, and the script gets its whole path."""
    path = script("env > environ", name="block-mine")
    await runner.run("block-mine", "add", backend_path=VBD, device_class="vbd")
    assert shown(tmp_path / "environ")["script"] == path


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "./x", "x\0", "/x\0"])
async def test_other_paths_are_refused(runner: ScriptRunner, name: str) -> None:
    """A relative path with a slash is refused, and the message says what to write."""
    with pytest.raises(HotplugError, match="a script is an absolute path, or the name of a file in"):
        await runner.run(name, "add", backend_path=VBD, device_class="vbd")


async def test_failure_carries_status_and_output(runner: ScriptRunner, script: Script) -> None:
    """A script that fails: its status, and what it printed on either stream."""
    path = script("echo one; echo two >&2; exit 3")
    with pytest.raises(HotplugError) as caught:
        await runner.run(path, "add", backend_path=VBD, device_class="vbd")
    assert (caught.value.script, caught.value.status, caught.value.stderr_tail) == (path, 3, "one\ntwo")


async def test_a_script_that_dies_by_a_signal(runner: ScriptRunner, script: Script) -> None:
    """A signal is reported as a negative status."""
    with pytest.raises(HotplugError) as caught:
        await runner.run(script("kill -TERM $$"), "add", backend_path=VBD, device_class="vbd")
    assert caught.value.status == -signal.SIGTERM
    assert caught.value.stderr_tail == "no output"


async def test_much_output_is_taken_and_cut(runner: ScriptRunner, script: Script) -> None:
    """A script that prints a megabyte is not held up; the last 2 KiB are kept."""
    path = script("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo the reason >&2; exit 1")
    with pytest.raises(HotplugError) as caught:
        await runner.run(path, "add", backend_path=VBD, device_class="vbd")
    assert caught.value.stderr_tail.endswith("x\nthe reason")
    assert 2000 < len(caught.value.stderr_tail) <= 2048


async def test_output_that_is_no_text(runner: ScriptRunner, script: Script) -> None:
    """Bytes that are not UTF-8 are shown, not choked on."""
    with pytest.raises(HotplugError) as caught:
        await runner.run(script("printf '\\377bad'; exit 1"), "add", backend_path=VBD, device_class="vbd")
    assert caught.value.stderr_tail == "\\xffbad"


async def test_scripts_that_cannot_be_run(runner: ScriptRunner, script: Script, tmp_path: Path) -> None:
    """Missing, a folder, not executable, without an interpreter: each says so, with a shell's status for it."""
    plain = script("exit 0", name="plain")
    os.chmod(plain, 0o644)
    orphan = tmp_path / "scripts" / "orphan"
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    for path, status, sentence in (
        (str(tmp_path / "gone"), 127, "there is no such file"),
        (str(tmp_path), 127, "there is no such file"),
        (plain, 126, f"it is not executable; chmod +x {plain}"),
        (str(orphan), 126, "it cannot be run: No such file or directory; does its first line name"),
    ):
        with pytest.raises(HotplugError) as caught:
            await runner.run(path, "add", backend_path=VBD, device_class="vbd")
        assert caught.value.status == status
        assert sentence in caught.value.stderr_tail
    assert not runner._turns


async def test_time_limit_kills_the_whole_group(script: Script, fifo: Path) -> None:
    """At the limit the script dies with its children: the pipe that both hold comes to its end."""
    runner = ScriptRunner(timeout_s=0.5, store_socket=None, log=log.get())
    holders = asyncio.create_task(asyncio.to_thread(fifo.read_bytes))
    path = script("exec 3>fifo; echo held >&3; echo still busy; tail -f /dev/null & wait")
    async with asyncio.timeout(30):
        with pytest.raises(HotplugError) as caught:
            await runner.run(path, "add", backend_path=VBD, device_class="vbd")
        assert caught.value.status == -signal.SIGKILL
        assert caught.value.stderr_tail == "killed at the time limit of 0.5 s; still busy"
        assert await holders == b"held\n"


async def test_cancellation_kills_the_whole_group(runner: ScriptRunner, script: Script, tmp_path: Path) -> None:
    """A cancelled run leaves no process behind, and the device free for the next."""
    started, held = tmp_path / "started", tmp_path / "held"
    os.mkfifo(started)
    os.mkfifo(held)
    holders = asyncio.create_task(asyncio.to_thread(held.read_bytes))
    path = script("exec 3>held; tail -f /dev/null & echo up >started; wait")
    async with asyncio.timeout(30):
        task = asyncio.create_task(runner.run(path, "add", backend_path=VBD, device_class="vbd"))
        assert await asyncio.to_thread(started.read_text) == "up\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await holders == b""
    assert not runner._turns


async def test_one_at_a_time_for_each_device(runner: ScriptRunner, script: Script, tmp_path: Path, fifo: Path) -> None:
    """T25: a device's second script waits for its first; another device's does not."""
    slow = script('echo "begin $1" >> story; read word < fifo; echo "end $1" >> story', name="slow")
    quick = script("echo other >> story", name="quick")
    async with asyncio.timeout(30):
        add = asyncio.create_task(runner.run(slow, "add", backend_path=VBD, device_class="vbd"))
        with await asyncio.to_thread(fifo.open, "w") as first:  # opens when the script reads
            remove = asyncio.create_task(runner.run(slow, "remove", backend_path=VBD, device_class="vbd"))
            await runner.run(quick, "add", backend_path="backend/vbd/4/51712", device_class="vbd")
            assert len(runner._turns) == 1
            first.write("go\n")
        await add
        await asyncio.to_thread(fifo.write_text, "go\n")
        await remove
    assert (tmp_path / "story").read_text().splitlines() == [
        "begin add",
        "other",
        "end add",
        "begin remove",
        "end remove",
    ]
    assert not runner._turns


@pytest.mark.parametrize("path", ["/local/domain/0/backend/vbd/3", "device/vbd/51712", "backend/vbd/x/1", ""])
async def test_a_path_that_is_no_backends(runner: ScriptRunner, script: Script, path: str) -> None:
    """A caller's slip is our own bug and said to be one."""
    with pytest.raises(LocalProtocolError):
        await runner.run(script("exit 0"), "add", backend_path=path, device_class="vbd")


async def test_an_action_that_is_none(runner: ScriptRunner, script: Script) -> None:
    """Only add and remove are actions here; online and offline follow from them."""
    with pytest.raises(LocalProtocolError):
        await runner.run(script("exit 0"), "online", backend_path=VBD, device_class="vif")


@pytest.mark.parametrize(("name", "is_one"), [("foo-bar", True), ("9pfs", True), ("Vbd", False), ("a" * 33, False)])
async def test_classes_are_those_of_everywhere(runner: ScriptRunner, script: Script, name: str, is_one: bool) -> None:
    """A path whose class no device can have is no backend's."""
    with nullcontext() if is_one else pytest.raises(LocalProtocolError):
        await runner.run(script("exit 0"), "add", backend_path=f"backend/{name}/3/0", device_class=name)
