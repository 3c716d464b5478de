"""Devices of several queues whose daemon is stopped or killed, and followed by another (T15)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import ask
from tests.doubles.many import (
    Hand,
    HastyBackend,
    ManyBackend,
    by_hand,
    journals,
)
from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.testing import HandRing, Machine
from xenbusd_echo.protocol import Line


def send(ring: HandRing, text: bytes) -> None:
    """Ask, and do not wait."""
    ring.send(Line(7, text).pack())


async def answered(hand: Hand, text: bytes) -> None:
    """Check that each queue has answered what was sent before."""
    for number, ring in enumerate(hand.rings):
        assert [Line.unpack(slot) for slot in await ring.take(1)] == [Line(7, b"%d:%s" % (number, text))]


@pytest.mark.parametrize("backend", [ManyBackend, HastyBackend])
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_t15_all_queues_are_adopted(machine: Machine, end: str, backend: type[ManyBackend]) -> None:
    """T15, T63: the next process adopts every ring at its own place, if the previous one could promise that for each;
    otherwise none of them.
    """
    async with by_hand(machine, backend) as (back, hand):
        await hand.connect()
        for count in range(3):
            assert await ask(hand.rings[0], b"a%d" % count) == [b"0:a%d" % count]
        await (back.stop if end == "stop" else back.kill)()
        for ring in hand.rings:
            send(ring, b"between")
        successor = await machine.start(DOM0, backend)
        if end == "kill" and backend is HastyBackend:
            await hand.peer.until(State.CLOSING)
            await hand.peer.write(State.CLOSED)
            await hand.peer.until(State.CLOSED)
            return
        await answered(hand, b"between")
        assert successor.states(hand.peer.id, "backend") == ["Connected"]
        await hand.leave()
        assert journals(successor) == []


@pytest.mark.parametrize("lost", [0, 1])
async def test_t15_one_journal_lost_is_all_lost(machine: Machine, lost: int, logged: list[dict[str, Any]]) -> None:
    """T15: without the journal of any one ring none is adopted, nothing is answered, and nothing stays behind."""
    async with by_hand(machine) as (back, hand):
        await hand.connect()
        await back.kill()
        Path(back.services.run_dir, journals(back)[lost]).unlink()
        for ring in hand.rings:
            send(ring, b"between")
        successor = await machine.start(DOM0, ManyBackend)
        await hand.peer.until(State.CLOSING)
        assert [line["reason"] for line in logged if line["event"] == "device.unclean"] == [
            "the previous daemon left no journal of the ring"
        ]
        assert [ring.events for ring in hand.rings] == [0, 0]
        await hand.peer.write(State.CLOSED)
        await hand.peer.until(State.CLOSED)
        assert journals(successor) == []
