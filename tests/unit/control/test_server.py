"""xenbusd.control.server: the control socket's answers, to valid requests and others, and its bounds."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.doubles.control_daemon import STATUS, FakeProvider, ask
from xenbusd.control.protocol import (
    REQUEST_BYTES_MAX,
    DeviceDetails,
    DeviceTimeline,
    Event,
    FollowRequest,
    encode_reply,
    encode_request,
)
from xenbusd.control.server import FOLLOW_BYTES_MAX, ControlServer
from xenbusd.errors import UsageError

EVENT = Event("vbd/3/51712", 1.25, "backend", "InitWait")


@dataclass
class Control:
    """A control socket, and the provider behind it."""

    path: str
    provider: FakeProvider
    server: ControlServer

    async def follow(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Begin to follow all devices."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(encode_request(FollowRequest()))
        assert await reader.readline() == b'{"ok": {"following": null}}\n'
        return reader, writer


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[Control]:
    """A listening control socket."""
    provider = FakeProvider()
    server = ControlServer(provider)
    path = str(tmp_path / "control.sock")
    await server.listen(path)
    yield Control(path, provider, server)
    await server.close()


async def test_the_list(control: Control) -> None:
    """The provider's status, as JSON."""
    assert await ask(control.path, {"command": "list"}) == {"ok": STATUS.to_json()}


async def test_show(control: Control) -> None:
    """The details of one device; the name of one that is not there is repeated."""
    details = DeviceDetails(
        device="vbd/3/51712",
        side="backend",
        state="Connected",
        otherend_state="Connected",
        waiting_for="",
        path="/a",
        otherend_path="/b",
        ring={},
    )
    control.provider.known["vbd/3/51712"] = details
    assert await ask(control.path, {"command": "show", "device": "vbd/3/51712"}) == {"ok": details.to_json()}
    answer = await ask(control.path, {"command": "show", "device": "vbd/3/1"})
    assert answer == {"error": "this daemon has no device vbd/3/1"}


async def test_timeline(control: Control) -> None:
    """The events of one device; the name of one that was never there is repeated."""
    timeline = DeviceTimeline("vbd/3/51712", 1.5, ())
    control.provider.timelines["vbd/3/51712"] = timeline
    assert await ask(control.path, {"command": "timeline", "device": "vbd/3/51712"}) == {"ok": timeline.to_json()}
    answer = await ask(control.path, {"command": "timeline", "device": "vbd/3/1"})
    assert answer == {"error": "this daemon has not seen a device vbd/3/1"}


@pytest.mark.parametrize("line", [b"", b"list", b"[1]", b"\xff\xfe", b"[" * 50000], ids=lambda line: repr(line[:9]))
async def test_a_garbage_line_is_answered_and_forgiven(control: Control, line: bytes) -> None:
    """The connection goes on: the next request is answered as if nothing had been."""
    assert await ask(control.path, line) == {"error": "a request is a JSON object on one line"}
    assert "ok" in await ask(control.path, line, {"command": "list"})


@pytest.mark.parametrize("request_", [{"command": "stop"}, {"command": "show"}, {"command": "list", "version": 2}])
async def test_a_request_that_is_none_is_answered(control: Control, request_: object) -> None:
    """By an error in words."""
    assert "error" in await ask(control.path, request_)


# -- follow --------------------------------------------------------------------------------------------------------


async def test_events_are_streamed_as_they_happen(control: Control) -> None:
    """One object a line, to each client that follows, until it closes."""
    (first, first_end), (second, second_end) = await control.follow(), await control.follow()
    assert control.provider.asked == [None, None]
    control.provider.happen(EVENT)
    assert await first.readline() == await second.readline() == encode_reply(EVENT)
    first_end.close()
    await control.provider.followed_by(1)
    control.provider.happen(EVENT)
    assert await second.readline() == encode_reply(EVENT)
    second_end.close()
    await control.provider.followed_by(0)


async def test_others_are_answered_meanwhile(control: Control) -> None:
    """A client that follows keeps nobody waiting."""
    _, end = await control.follow()
    assert "ok" in await ask(control.path, {"command": "list"})
    end.close()


async def test_a_client_that_does_not_read_is_cut_off(control: Control) -> None:
    """The daemon keeps at most so much for it, and forgets it when there is more."""
    reader, end = await control.follow()
    line = len(encode_reply(EVENT))
    for _ in range((FOLLOW_BYTES_MAX + (1 << 22)) // line):  # more than the kernel keeps, too
        control.provider.happen(EVENT)
        waiting = max(writer.transport.get_write_buffer_size() for writer in control.server.clients.values())
        assert waiting <= FOLLOW_BYTES_MAX + line
    await control.provider.followed_by(0)
    with suppress(ConnectionError):
        assert len(await reader.read(1 << 23)) < 1 << 23
    end.close()


async def test_a_word_from_a_client_that_follows_ends_the_stream(control: Control) -> None:
    """A connection that streams is good for nothing else."""
    reader, end = await control.follow()
    end.write(encode_request(FollowRequest()))
    with suppress(ConnectionError):
        assert await reader.read() == b""
    await control.provider.followed_by(0)
    end.close()


async def test_the_stream_ends_with_the_daemon(control: Control) -> None:
    """What was reported before still arrives."""
    reader, end = await control.follow()
    control.provider.happen(EVENT)
    await control.server.close()
    assert await reader.read() == encode_reply(EVENT)
    await control.provider.followed_by(0)
    end.close()


# -- the socket ----------------------------------------------------------------------------------------------------


async def test_a_line_without_end_ends_the_connection_only(control: Control) -> None:
    """More than a request may have: nothing is kept, and others are still answered."""
    reader, writer = await asyncio.open_unix_connection(control.path)
    with closing(writer):
        writer.write(b"x" * (2 * REQUEST_BYTES_MAX + 2))
        with suppress(ConnectionError):  # it may close while we still write
            assert await reader.read() == b""
    assert "ok" in await ask(control.path, {"command": "list"})


async def test_somebody_who_goes_away_is_no_harm(control: Control) -> None:
    """Without waiting for the answer, or in the middle of a line."""
    for words in (b'{"command": "list"}\n', b'{"comm'):
        _, writer = await asyncio.open_unix_connection(control.path)
        writer.write(words)
        writer.close()
        await writer.wait_closed()
    assert "ok" in await ask(control.path, {"command": "list"})


async def test_only_its_owner_may_open_it(control: Control) -> None:
    """What a guest does is nobody else's business."""
    assert stat.S_IMODE(os.stat(control.path).st_mode) == 0o600


async def test_a_second_daemon_is_refused(control: Control) -> None:
    """While the first one answers; which goes on."""
    second = ControlServer(FakeProvider())
    with pytest.raises(UsageError) as caught:
        await second.listen(control.path)
    assert control.path in str(caught.value)
    await second.close()
    assert "ok" in await ask(control.path, {"command": "list"})


async def test_a_socket_left_behind_is_replaced(control: Control) -> None:
    """By a daemon that was killed: nobody answers there any more."""
    left = str(Path(control.path).with_name("left.sock"))
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(left)
    server = ControlServer(control.provider)
    await server.listen(left)
    assert "ok" in await ask(left, {"command": "list"})
    await server.close()


async def test_another_file_is_left_alone(control: Control) -> None:
    """What is no socket was put there by somebody."""
    path = Path(control.path).with_name("notes.txt")
    path.write_text("keep me")
    with pytest.raises(UsageError):
        await ControlServer(control.provider).listen(str(path))
    assert path.read_text() == "keep me"


async def test_closing_removes_the_socket(control: Control) -> None:
    """Idempotent."""
    await control.server.close()
    assert not os.path.exists(control.path)
    await control.server.close()
