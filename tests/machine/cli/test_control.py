"""The control socket of a real daemon: what a device does is streamed while it happens."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from xenbusd.control.client import ControlClient, connected
from xenbusd.control.protocol import Event
from xenbusd.control.records import ControlError
from xenbusd.testing.processes import ProcessMachine, end, machine

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

DEADLINE_S = 60.0


@pytest.fixture
def host() -> Iterator[ProcessMachine]:
    """A simulated host with backends, and frontends in domain 1."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, machine(Path(folder)) as host:
        host.serve("--class", "echo")
        host.agent(1, "--class", "echo")
        yield host


@pytest.fixture
async def daemon(host: ProcessMachine) -> AsyncIterator[ControlClient]:
    """A conversation with dom0's daemon."""
    async with connected(host.path + ".dom0/control.sock") as client:
        yield client


async def ctl(host: ProcessMachine, *arguments: str) -> None:
    """Run xenbusctl beside the event loop."""
    done = await asyncio.to_thread(host.ctl, *arguments)
    assert done.returncode == 0, done.stderr


async def until(events: AsyncIterator[Event], title: str) -> list[tuple[str, str]]:
    """What happens until the backend is at a state."""
    story: list[tuple[str, str]] = []
    async with asyncio.timeout(DEADLINE_S):
        while not story or story[-1] != ("backend", title):
            event = await anext(events)
            assert event.device == "echo/1/3"
            story.append((event.actor, event.event))
    return story


async def listen(events: AsyncIterator[Event], story: list[Event]) -> None:
    """Add each event to a story."""
    async with asyncio.timeout(DEADLINE_S):
        async for event in events:
            story.append(event)


async def test_a_device_is_followed_from_before_it_is_there(host: ProcessMachine, daemon: ControlClient) -> None:
    """Each step of both ends arrives as it is made: exactly as the timeline shows it afterwards."""
    events = await daemon.follow("echo/1/3")
    await ctl(host, "attach", "echo", "--domain", "1", "--devid", "3")
    story = await until(events, "Connected")
    assert [event for actor, event in story if actor == "backend"] == ["Initialising", "InitWait", "Connected"]
    await ctl(host, "detach", "echo/1/3")
    story += await until(events, "Closed")
    async with connected(host.path + ".dom0/control.sock") as other:
        entries = (await other.timeline("echo/1/3")).entries
    assert story == [(entry.actor, entry.event) for entry in entries][: len(story)]


async def test_the_stream_ends_with_the_daemon(host: ProcessMachine) -> None:
    """A client that follows all devices learns that the daemon stops, after the last thing that it did."""
    guest = host.agent(2, "--class", "echo")
    async with connected(host.path + ".dom2/control.sock") as daemon:
        assert (await daemon.status()).side == "frontend"
        events = await daemon.follow()
        await ctl(host, "attach", "echo", "--domain", "2", "--devid", "3")
        assert await asyncio.to_thread(end, guest) == 0
        story: list[Event] = []
        with pytest.raises(ControlError, match="hung up"):
            await listen(events, story)
    assert [event.event for event in story if event.actor == "frontend"][-2:] == ["Closing", "Closed"]
