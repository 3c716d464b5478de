"""Devices of several queues (T28), and keys that change while a device is connected (T34)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.echo import GUEST, ask
from xenbusd.api import Backend, BackendDevice, BackLink, ConnectionEnded, Frontend, FrontendDevice, FrontLink, unsigned
from xenbusd.bus.device import Device
from xenbusd.bus.paths import DeviceId
from xenbusd.bus.state import State
from xenbusd.ids import DOM0
from xenbusd.ring.layout import REQ_PROD, RingFormat
from xenbusd.testing import HandRing, Machine, Peer, Process
from xenbusd.testing.machine import DEADLINE_S
from xenbusd_echo.protocol import Line

QUEUES_MAX = 4
FORMAT = RingFormat(64, Line, Line, max_order=2)


class ManyBackend(Backend, device_class="many"):
    """Answer each line with the number of the queue before it."""

    in_order = True

    async def run(self, dev: BackendDevice) -> None:
        """Answer on all queues at once."""

        async def answer(number: int, link: BackLink[Line, Line]) -> None:
            async for line in link:
                link.reply(replace(line, text=b"%d:%s" % (number, line.text)))

        await dev.advertise(multi_queue_max_queues=QUEUES_MAX, size=1)
        async with (
            dev.connect_queues(FORMAT, max_queues=QUEUES_MAX, in_order=self.in_order) as links,
            asyncio.TaskGroup() as tasks,
        ):
            for number, link in enumerate(links):
                tasks.create_task(answer(number, link))


class HastyBackend(ManyBackend, device_class="many"):
    """One that promises no order."""

    in_order = False


class ManyFrontend(Frontend, device_class="many"):
    """Offer as many queues as the options say, and follow the backend's `size`."""

    links: list[FrontLink[Line, Line]]
    sizes: list[int]

    async def run(self, dev: FrontendDevice) -> None:
        """Let the test use the links."""

        async def follow() -> None:
            async for _ in dev.changes():
                self.sizes.append(await dev.otherend.read("size", unsigned()))

        await dev.backend_ready()
        queues, order = dev.options["queues"], dev.options.get("order")
        async with dev.offer_queues(FORMAT, queues=queues, order=order) as links:
            for link in links:
                link.start(link.answer)
            ManyFrontend.links, ManyFrontend.sizes = links, []
            following = asyncio.create_task(follow())
            try:
                await dev.connected()
                await dev.until_ended()
            finally:
                following.cancel()


async def texts(*answers: Any) -> list[bytes]:
    """The texts of answers that are awaited together."""
    async with asyncio.timeout(DEADLINE_S):
        return [line.text for line in await asyncio.gather(*answers)]


def call(number: int, text: bytes) -> Any:
    """Ask through one queue of the frontend."""
    return ManyFrontend.links[number].call(Line(id=0, text=text))


@asynccontextmanager
async def pair(machine: Machine, **options: Any) -> AsyncIterator[tuple[Process, Process, DeviceId]]:
    """Connect both ends; in the end, detach and see that nothing is left. Yields backend, frontend, and which."""
    await machine.start(GUEST)  # the domain lives as long as the test
    guest = await machine.start(GUEST, ManyFrontend, options={"many": options})
    back = await machine.start(DOM0, ManyBackend)
    before = await machine.snapshot()
    id = machine.id("many", GUEST)
    await machine.attach(id)
    await machine.connected(id)
    yield back, guest, id
    await machine.detach(id)
    for process in machine.processes:
        if process.alive:
            await process.settle()
    assert await machine.snapshot() == before


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


# -- a frontend by hand ------------------------------------------------------------------------------------------------


class Hand:
    """A frontend that offers several rings by hand.

    Args:
        peer: whose end.
        queues: how many.
    """

    def __init__(self, peer: Peer, queues: int = 2) -> None:
        self.peer = peer
        self.rings = [peer.ring(FORMAT) for _ in range(queues)]
        self.keys: dict[str, Any] = {"multi-queue-num-queues": queues}
        for number, ring in enumerate(self.rings):
            self.keys |= {f"queue-{number}/ring-ref": ring.grefs[0], f"queue-{number}/event-channel": ring.port}

    async def connect(self) -> None:
        """Go through a frontend's handshake."""
        await self.peer.until(State.INIT_WAIT)
        await self.peer.write(State.INITIALISED, **self.keys)
        await self.peer.until(State.CONNECTED)
        await self.peer.write(State.CONNECTED)

    async def leave(self) -> None:
        """Close in order."""
        await self.peer.write(State.CLOSING)
        await self.peer.until(State.CLOSING)
        await self.peer.write(State.CLOSED)
        await self.peer.until(State.CLOSED)

    def close(self) -> None:
        """Take the rings back."""
        for ring in self.rings:
            ring.close()


@asynccontextmanager
async def by_hand(machine: Machine, backend: type[Backend] = ManyBackend) -> AsyncIterator[tuple[Process, Hand]]:
    """A backend, and a frontend by hand that has offered nothing yet; in the end, nothing is mapped any more."""
    back = await machine.start(DOM0, backend)
    peer = Peer(await machine.start(GUEST), machine.id("many", GUEST))
    await machine.attach(peer.id)
    hand = Hand(peer)
    yield back, hand
    assert machine.holdings(GUEST).grants_mapped == 0
    hand.close()


def journals(process: Process) -> list[str]:
    """The journals that are in a process's run directory."""
    return sorted(path.name for path in Path(process.services.run_dir).glob("*.ring*"))


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
        (many(0), b"22 /local/domain/5/device/many/0/multi-queue-num-queues is 0; 1 to 4 can be had"),
        (many(5), b"22 /local/domain/5/device/many/0/multi-queue-num-queues is 5; 1 to 4 can be had"),
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
    """T28: all queues or none: one that cannot be had ends the connection, with nothing mapped and no journal left; the
    next offer may succeed."""
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
    """A ring that claims what cannot be closes its device, whichever of its queues it is."""
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


# -- one process after another -----------------------------------------------------------------------------------------


def send(ring: HandRing, text: bytes) -> None:
    """Ask, and do not wait."""
    ring.send(Line(7, text).pack())


async def answered(hand: Hand, text: bytes) -> None:
    """Check that each queue has answered what was sent before."""
    for number, ring in enumerate(hand.rings):
        assert [Line.unpack(slot) for slot in await ring.take(1)] == [Line(7, b"%d:%s" % (number, text))]


@pytest.mark.parametrize("backend", [ManyBackend, HastyBackend])
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_t15_all_queues_are_gone_on_with(machine: Machine, end: str, backend: type[ManyBackend]) -> None:
    """T15, T63: the next process goes on with every ring at its own place, if the one before could promise it for each;
    otherwise with none of them."""
    async with by_hand(machine, backend) as (back, hand):
        await hand.connect()
        for count in range(3):
            assert await ask(hand.rings[0], b"a%d" % count) == [b"0:a%d" % count]
        await (back.stop if end == "stop" else back.kill)()
        for ring in hand.rings:
            send(ring, b"between")
        successor = await machine.start(DOM0, backend)
        if end == "kill" and not backend.in_order:
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
    """T15: without the journal of any one ring none is gone on with, nothing is answered, and nothing stays behind."""
    async with by_hand(machine) as (back, hand):
        await hand.connect()
        await back.kill()
        Path(back.services.run_dir, journals(back)[lost]).unlink()
        for ring in hand.rings:
            send(ring, b"between")
        successor = await machine.start(DOM0, ManyBackend)
        await hand.peer.until(State.CLOSING)
        assert [line["reason"] for line in logged if line["event"] == "device.unclean"] == [
            "the process before us has left no journal of the ring"
        ]
        assert [ring.events for ring in hand.rings] == [0, 0]
        await hand.peer.write(State.CLOSED)
        await hand.peer.until(State.CLOSED)
        assert journals(successor) == []


# -- keys that change --------------------------------------------------------------------------------------------------


async def test_t34_a_key_is_republished(machine: Machine) -> None:
    """T34: the new value and the state's old one come together, the frontend sees each change without a step of state,
    and goes on with its ring."""
    async with pair(machine, queues=2) as (back, guest, id):
        dev = back.device(id)
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
    """T7, T34: a device that closes or has gone keeps its state, and gets no new keys."""
    async with by_hand(machine) as (back, hand):
        await hand.connect()
        dev = back.device(hand.peer.id)
        await end(machine, hand.peer.id)
        with pytest.raises(ConnectionEnded):
            await dev.republish({"size": 5})
        assert await hand.peer.read("size") in (b"1", None)
        assert await hand.peer.read("state") != b"4"
        await hand.peer.write(State.CLOSED)
        await back.until(lambda: machine.holdings(GUEST).grants_mapped == 0)


async def test_whoever_waits_has_hints_of_its_own(machine: Machine) -> None:
    """Several tasks that follow one device all hear of each change, and none takes another's away."""
    async with pair(machine, queues=1) as (back, _, id):
        dev: Device = back.device(id)
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
    """When the device goes, every queue's callers are told."""
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
