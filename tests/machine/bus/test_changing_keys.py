"""Keys that change while a device is connected (T34), and the tasks that are woken by the change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from tests.doubles.echo import GUEST
from tests.doubles.many import (
    ManyFrontend,
    by_hand,
    call,
    pair,
    texts,
)
from xenbusd.api import (
    BackendDevice,
    ConnectionEnded,
)
from xenbusd.bus.backend_life import BackendLife
from xenbusd.bus.device import Device
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.testing import Machine


def handle(device: Device) -> BackendDevice:
    """A driver's handle on a device."""
    assert isinstance(device, BackendLife)
    return BackendDevice(device)


async def test_t34_a_key_is_republished(machine: Machine) -> None:
    """T34: the new value and the state's old one come together, the frontend sees each change without a step of state,
    and keeps its ring."""
    async with pair(machine, queues=2) as (back, guest, id):
        dev = handle(back.device(id))
        for size in (5, 6, 6):
            before = len(ManyFrontend.sizes)
            await dev.republish({"size": size})
            await guest.until(lambda before=before: len(ManyFrontend.sizes) > before)  # type: ignore[misc]
            assert ManyFrontend.sizes[-1] == size
        assert await texts(call(1, b"on")) == [b"1:on"]
        assert guest.states(id, "frontend") == ["Initialising", "Initialised", "Connected"]
        assert [event for _, event in back.story(id)].count("write size") == 3


async def closing(machine: Machine, id: DeviceId) -> None:
    """The toolstack closes it."""
    await machine.write(id.backend_path, state="5")


async def removed(machine: Machine, id: DeviceId) -> None:
    """The toolstack removes it."""
    await machine.store.rm(id.backend_path)


@pytest.mark.parametrize("end", [closing, removed])
async def test_t34_nothing_is_republished_once_it_is_over(machine: Machine, end: Callable[..., Any]) -> None:
    """T7, T34: once a device closes or has gone, its state stays, and no new keys are written."""
    async with by_hand(machine) as (back, hand):
        await hand.connect()
        dev = handle(back.device(hand.peer.id))
        await end(machine, hand.peer.id)
        with pytest.raises(ConnectionEnded):
            await dev.republish({"size": 5})
        assert await hand.peer.read("size") in (b"1", None)
        assert await hand.peer.read("state") != b"4"
        await hand.peer.write(State.CLOSED)
        await back.until(lambda: machine.holdings(GUEST).grants_mapped == 0)


async def test_each_waiting_task_has_hints_of_its_own(machine: Machine) -> None:
    """Several tasks that follow one device are all woken by each change; none consumes another's hint."""
    async with pair(machine, queues=1) as (back, _, id):
        dev = handle(back.device(id))
        heard = [0, 0]

        async def follow(which: int) -> None:
            async for _ in dev.changes():
                heard[which] += 1

        tasks = [asyncio.create_task(follow(which)) for which in range(2)]
        await back.until(lambda: min(heard) >= 1)
        for _ in range(3):
            before = max(heard)
            await machine.write(id.backend_path, rate="7")
            await back.until(lambda before=before: min(heard) > before)  # type: ignore[misc]
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_links_that_are_closed_answer_no_calls(machine: Machine) -> None:
    """When the device goes, the callers of every queue get an error."""
    with ExitStack() as stack:
        async with pair(machine, queues=2) as (back, _, id):
            await back.stop()
            waiting = [asyncio.ensure_future(call(number, b"late")) for number in range(2)]
            stack.callback(lambda: [task.cancel() for task in waiting])
            await machine.start(DOM0)
            await machine.write(id.backend_path, state="6")
            for task in waiting:
                with pytest.raises(ConnectionEnded):
                    await task
