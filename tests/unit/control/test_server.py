"""xenbusd.control.server: what the control socket answers, to sense and to nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from xenbusd import log
from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.device import Device, Services
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.ports import Ports
from xenbusd.bus.state import Seen, Side, State
from xenbusd.control.server import LINE_MAX, ControlServer
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, DeviceClass, Devid, Domid

ID = DeviceId(DeviceClass("vbd"), Domid(3), Devid(51712))


@dataclass
class FakeDaemon:
    """A daemon as far as its control socket sees it."""

    side: Side = Side.BACKEND
    devices: list[Device] = field(default_factory=list)


@dataclass
class Control:
    """A control socket, and what stands behind it."""

    path: str
    daemon: FakeDaemon
    services: Services
    server: ControlServer

    def add(self, id: DeviceId) -> BackendDevice:
        """One more device."""
        dev = BackendDevice(self.services, id)
        self.daemon.devices.append(dev)
        return dev

    async def ask(self, *requests: object) -> Any:
        """Send requests, JSON or raw lines, on one connection; return the last answer."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        answer: Any = None
        with closing(writer):
            for request in requests:
                line = request if isinstance(request, bytes) else json.dumps(request).encode()
                writer.write(line + b"\n")
                answer = json.loads(await reader.readline())
        return answer


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[Control]:
    """A listening control socket of a daemon without devices."""
    services = Services(
        store=cast("Any", SimpleNamespace(connected=True)),
        host=cast("Any", SimpleNamespace(name="sim:/run/host")),
        ports=Ports(cast("Any", None)),
        domid=DOM0,
        log=log.get(),
        run_dir=str(tmp_path),
    )
    daemon = FakeDaemon()
    server = ControlServer(daemon, services, DOM0)
    path = str(tmp_path / "control.sock")
    await server.listen(path)
    yield Control(path, daemon, services, server)
    await server.close()


async def test_the_list_tells_of_the_daemon(control: Control) -> None:
    """Which side of which host, since when, and whether its store is there."""
    about = (await control.ask({"command": "list"}))["ok"]
    uptime_s = about.pop("uptime_s")
    assert about == {
        "side": "backend",
        "domid": 0,
        "host": "sim:/run/host",
        "pid": os.getpid(),
        "store_connected": True,
        "devices": [],
    }
    assert uptime_s >= 0


async def test_the_list_tells_of_each_device(control: Control) -> None:
    """Its states, what it waits for, and its counters, in the order in which they appeared."""
    dev = control.add(ID)
    control.add(DeviceId(DeviceClass("vbd"), Domid(4), Devid(0)))
    dev.seen = Seen(State.INIT_WAIT, State.INITIALISING, True, "")
    dev.waiting_for = "the hotplug script to report"
    dev.counters["requests"] = 7
    devices = (await control.ask({"command": "list"}))["ok"]["devices"]
    assert [device["device"] for device in devices] == ["vbd/3/51712", "vbd/4/0"]
    assert devices[0] == {
        "device": "vbd/3/51712",
        "side": "backend",
        "state": "InitWait",
        "otherend_state": "Initialising",
        "waiting_for": "the hotplug script to report",
        "requests": 7,
        "bytes": 0,
        "errors": 0,
        "notifications": 0,
    }


async def test_show_tells_more_of_one(control: Control) -> None:
    """Both directories; and, while it is connected, its ring."""
    dev = control.add(ID)
    shown = (await control.ask({"command": "show", "device": "vbd/3/51712"}))["ok"]
    assert (shown["path"], shown["otherend_path"]) == (ID.backend_path, ID.frontend_path)
    assert shown["ring"] == {}
    dev.details = lambda: {"port": 9, "req_prod": 4}
    shown = (await control.ask({"command": "show", "device": "vbd/3/51712"}))["ok"]
    assert shown["ring"] == {"port": 9, "req_prod": 4}


async def test_show_of_a_device_that_is_not_there(control: Control) -> None:
    """The name is repeated."""
    control.add(ID)
    assert await control.ask({"command": "show", "device": "vbd/3/1"}) == {"error": "this daemon has no device vbd/3/1"}


async def test_a_timeline_outlives_its_device(control: Control) -> None:
    """What each end did and when, also after the device has gone."""
    dev = control.add(ID)
    dev.timeline.record("backend", "InitWait")
    dev.timeline.record("frontend", "Initialised")
    control.daemon.devices.clear()
    told = (await control.ask({"command": "timeline", "device": "vbd/3/51712"}))["ok"]
    assert (told["device"], told["started"]) == ("vbd/3/51712", dev.timeline.started_wall)
    assert [(entry["actor"], entry["event"]) for entry in told["entries"]] == [
        ("backend", "InitWait"),
        ("frontend", "Initialised"),
    ]
    assert told["entries"][0]["at"] <= told["entries"][1]["at"]


async def test_the_timeline_of_a_device_never_seen(control: Control) -> None:
    """The name is repeated."""
    answer = await control.ask({"command": "timeline", "device": "vbd/3/1"})
    assert answer == {"error": "this daemon has not seen a device vbd/3/1"}


@pytest.mark.parametrize("command", ["stop", None, 7, ["list"], {}])
async def test_an_unknown_command_is_told_which_there_are(control: Control, command: object) -> None:
    """Whatever kind of thing it is."""
    answer = await control.ask({"command": command})
    assert answer == {"error": f"no command {command!r}; there are list, show and timeline"}


@pytest.mark.parametrize("name", [None, 7, ["vbd/3/1"], {"a": 1}, "", "x" * 1000])
@pytest.mark.parametrize("command", ["show", "timeline"])
async def test_a_device_that_is_no_name_is_just_not_there(control: Control, command: str, name: object) -> None:
    """An error in words, whatever kind of thing it is."""
    assert "device" in (await control.ask({"command": command, "device": name}))["error"]


@pytest.mark.parametrize(
    "line",
    [b"", b"list", b"{", b"[1]", b"7", b"null", b'"list"', b"\xff\xfe", b"\0", b'{"command": "list"', b"[" * 50000],
    ids=lambda line: repr(line[:20]),
)
async def test_a_garbage_line_is_answered_and_forgiven(control: Control, line: bytes) -> None:
    """The connection goes on: the next request is answered as if nothing had been."""
    assert await control.ask(line) == {"error": "a request is a JSON object on one line"}
    assert "ok" in await control.ask(line, {"command": "list"})


async def test_a_line_without_end_ends_the_connection_only(control: Control) -> None:
    """More than a request may have: nothing is kept, and others are still answered."""
    reader, writer = await asyncio.open_unix_connection(control.path)
    with closing(writer):
        writer.write(b"x" * (2 * LINE_MAX + 2))
        with suppress(ConnectionError):  # it may close while we still write
            assert await reader.read() == b""
    assert "ok" in await control.ask({"command": "list"})


async def test_somebody_who_goes_away_is_no_harm(control: Control) -> None:
    """Without waiting for the answer, or in the middle of a line."""
    for words in (b'{"command": "list"}\n', b'{"comm'):
        _, writer = await asyncio.open_unix_connection(control.path)
        writer.write(words)
        writer.close()
        await writer.wait_closed()
    assert "ok" in await control.ask({"command": "list"})


async def test_only_its_owner_may_open_it(control: Control) -> None:
    """What a guest does is nobody else's business."""
    assert stat.S_IMODE(os.stat(control.path).st_mode) == 0o600


async def test_a_second_daemon_is_refused(control: Control) -> None:
    """While the first one answers; which goes on."""
    second = ControlServer(FakeDaemon(), control.services, DOM0)
    with pytest.raises(UsageError) as caught:
        await second.listen(control.path)
    assert control.path in str(caught.value)
    await second.close()
    assert "ok" in await control.ask({"command": "list"})


async def test_a_socket_left_behind_is_replaced(control: Control) -> None:
    """By a daemon that was killed: nobody answers there any more."""
    left = str(Path(control.path).with_name("left.sock"))
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(left)
    server = ControlServer(control.daemon, control.services, DOM0)
    await server.listen(left)
    assert "ok" in await Control(left, control.daemon, control.services, server).ask({"command": "list"})
    await server.close()


async def test_another_file_is_left_alone(control: Control) -> None:
    """What is no socket was put there by somebody."""
    path = Path(control.path).with_name("notes.txt")
    path.write_text("keep me")
    with pytest.raises(UsageError):
        await ControlServer(control.daemon, control.services, DOM0).listen(str(path))
    assert path.read_text() == "keep me"


async def test_closing_removes_the_socket(control: Control) -> None:
    """Idempotent."""
    await control.server.close()
    assert not os.path.exists(control.path)
    await control.server.close()
