"""xenbusd.control.client: sends requests, follows events, and says plainly when no daemon answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles.control_daemon import STATUS, FakeProvider
from xenbusd.control.client import connected
from xenbusd.control.protocol import DeviceTimeline, Event
from xenbusd.control.records import ControlError
from xenbusd.control.server import ControlServer


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the daemon answers."""
    return str(tmp_path / "control.sock")


@pytest.fixture
async def provider(path: str) -> AsyncIterator[FakeProvider]:
    """The answers of the daemon at that path."""
    provider = FakeProvider()
    server = ControlServer(provider)
    await server.listen(path)
    yield provider
    await server.close()


async def test_several_questions_in_one_conversation(provider: FakeProvider, path: str) -> None:
    """Each gets the record that answers it; a refusal does not end the conversation."""
    provider.timelines["vbd/3/1"] = timeline = DeviceTimeline("vbd/3/1", 1.5, ())
    async with connected(path) as daemon:
        assert await daemon.status() == STATUS
        with pytest.raises(ControlError, match=r"^this daemon has no device vbd/3/1$"):
            await daemon.details("vbd/3/1")
        assert await daemon.timeline("vbd/3/1") == timeline


async def test_events_are_followed(provider: FakeProvider, path: str) -> None:
    """Nothing is missed that happens after `follow` has returned."""
    event = Event("vbd/3/1", 1.25, "backend", "InitWait")
    async with connected(path) as daemon:
        events = await daemon.follow("vbd/3/1")
        assert provider.asked == ["vbd/3/1"]
        provider.happen(event)
        assert await anext(events) == event
    await provider.followed_by(0)


async def test_no_daemon(path: str) -> None:
    """The path is named, and what to start."""
    with pytest.raises(ControlError, match=r"no daemon answers at .*control\.sock .*is `xenbusd serve` running\?"):
        async with connected(path):
            pass


async def test_a_daemon_that_ends(path: str) -> None:
    """In the middle of an answer, or of a stream."""
    server = ControlServer(FakeProvider())
    await server.listen(path)
    async with connected(path) as daemon:
        events = await daemon.follow()
        await server.close()
        with pytest.raises(ControlError, match=r"^the daemon hung up$"):
            await anext(events)
        with pytest.raises(ControlError, match=r"^the daemon hung up$"):
            await daemon.status()
