"""Devices of several queues (T28): what both ends do, and which offers are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.doubles.echo import GUEST, ask
from tests.doubles.many import (
    Hand,
    ManyBackend,
    ManyFrontend,
    by_hand,
    call,
    journals,
    pair,
    texts,
)
from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.ring.layout import REQ_PROD
from xenbusd.testing import Machine


@pytest.mark.parametrize("order", [None, 0, 2])
@pytest.mark.parametrize("queues", [1, 2, 4])
async def test_both_ends_with_several_queues(machine: Machine, queues: int, order: int | None) -> None:
    """Each queue has a ring and a port of its own, more calls than slots are under way on each, and each answer comes
    through the queue of its question; `show` has all of them."""
    async with pair(machine, queues=queues, order=order) as (back, guest, id):
        assert len(ManyFrontend.links) == queues
        calls = [(number, b"%d" % n) for n in range(200) for number in range(queues)]
        assert await texts(*(call(*each) for each in calls)) == [b"%d:%s" % each for each in calls]
        assert back.device(id).counters["requests"] == guest.device(id).counters["requests"] == 200 * queues
        for process in (back, guest):
            details = process.device(id).details
            assert details is not None
            told = details()
            if queues == 1:
                assert told["req_prod"] == 200
                continue
            assert list(told) == [f"queue-{number}" for number in range(queues)]
            assert [ring["req_prod"] for ring in told.values() if isinstance(ring, dict)] == [200] * queues
            assert len({ring["port"] for ring in told.values() if isinstance(ring, dict)}) == queues
        assert machine.holdings(GUEST).grants_mapped == queues << (order or 0)


async def test_another_number_of_queues_the_next_time(machine: Machine) -> None:
    """T28: what an earlier offer has left in the frontend's directory does not belie the next one."""
    id = machine.id("many", GUEST)
    await machine.start(DOM0, ManyBackend)
    await machine.start(GUEST)
    await machine.attach(id)
    for queues, order in ((4, 1), (1, None), (2, None), (1, 0), (1, None)):
        guest = await machine.start(GUEST, ManyFrontend, options={"many": {"queues": queues, "order": order}})
        await machine.connected(id)
        assert await texts(*(call(number, b"x") for number in range(queues))) == [b"%d:x" % n for n in range(queues)]
        assert machine.holdings(GUEST).grants_mapped == queues << (order or 0)
        await guest.stop()


def many(count: int) -> Callable[[Hand], None]:
    """Claim a number of queues."""
    return lambda hand: hand.keys.update({"multi-queue-num-queues": count})


def without(key: str) -> Callable[[Hand], None]:
    """Leave a key out."""
    return lambda hand: hand.keys.pop(key) and None


def same_port(hand: Hand) -> None:
    """Name one queue's port in both."""
    hand.keys["queue-1/event-channel"] = hand.keys["queue-0/event-channel"]


def no_gref(hand: Hand) -> None:
    """Name a page that was never granted."""
    hand.keys["queue-1/ring-ref"] = 4_000_000


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        (many(0), b"22 /local/domain/5/device/many/0/multi-queue-num-queues is 0; it must be 1 to 4"),
        (many(5), b"22 /local/domain/5/device/many/0/multi-queue-num-queues is 5; it must be 1 to 4"),
        (many(1 << 20), b"22 /local/domain/5/device/many/0/multi-queue-num-queues holds '1048576'"),
        (many(3), b"22 /local/domain/5/device/many/0/queue-2/ring-ref is missing"),
        (many(1), b"22 /local/domain/5/device/many/0/ring-ref is missing"),
        (without("queue-1/event-channel"), b"22 /local/domain/5/device/many/0/queue-1/event-channel is missing"),
        (no_gref, b"domain 5, references 4000000"),
        (same_port, b"22 xenevtchn_bind_interdomain(domain 5, port "),
    ],
)
async def test_t28_an_offer_of_queues_that_is_not_sound(
    machine: Machine, lie: Callable[[Hand], None], complaint: bytes
) -> None:
    """T28: all queues or none: one that cannot be connected ends the connection, with nothing mapped and no journal
    left; the next offer may succeed."""
    async with by_hand(machine) as (back, hand):
        honest = dict(hand.keys)
        lie(hand)
        await hand.peer.until(State.INIT_WAIT)
        await hand.peer.write(State.INITIALISED, **hand.keys)
        await hand.peer.until(State.CLOSING)
        assert machine.holdings(GUEST).grants_mapped == 0
        await hand.peer.write(State.CLOSED)
        await hand.peer.until(State.CLOSED)
        assert complaint in (await machine.read(hand.peer.id.error_path(ManyBackend.side)) or b"nothing")
        assert journals(back) == []
        hand.keys = honest
        await hand.peer.write(State.INITIALISING)
        await hand.connect()
        assert journals(back) == ["many-5-0.ring", "many-5-0.ring1"]
        assert await ask(hand.rings[1], b"sound") == [b"1:sound"]
        await hand.leave()
        assert journals(back) == []


async def test_nonsense_in_one_queue_ends_them_all(machine: Machine) -> None:
    """A ring with an impossible index closes its device, whichever of its queues it is."""
    async with by_hand(machine) as (_, hand):
        await hand.connect()
        assert await ask(hand.rings[0], b"well") == [b"0:well"]
        hand.rings[1].words[REQ_PROD] = 1000
        hand.rings[1].notify()
        await hand.peer.until(State.CLOSING)
        assert machine.holdings(GUEST).grants_mapped == 0
        await hand.peer.write(State.CLOSED)
        await hand.peer.until(State.CLOSED)
        error = await machine.read(hand.peer.id.error_path(ManyBackend.side))
        assert error is not None
        assert b"req_prod 1000" in error
