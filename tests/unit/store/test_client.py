"""The client against a store that says exactly what the test tells it to."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from tests.unit.store.scripted import DEADLINE_S, Peer, ScriptedStore
from xenbusd.errors import (
    LocalProtocolError,
    NodeExists,
    NodeNotFound,
    QuotaExceeded,
    StoreError,
    StoreLost,
    TransactionConflict,
)
from xenbusd.store import client as client_module
from xenbusd.store import transaction as transaction_module
from xenbusd.store.client import StoreClient
from xenbusd.store.transaction import RETRIES_MAX, Transaction
from xenbusd.store.wire import HEADER, InvalidPath, InvalidPayload, InvalidPermission, Op

Connected = tuple[StoreClient, Peer]


@pytest.fixture(autouse=True)
def _no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect again, and do transactions again, in the next moment."""
    monkeypatch.setattr(client_module, "RECONNECT_FIRST_S", 0.0001)
    monkeypatch.setattr(client_module, "RECONNECT_MAX_S", 0.001)
    monkeypatch.setattr(transaction_module, "BACKOFF_MAX_S", 0.0001)


@pytest.fixture(params=["socket", "device"])
def store(request: pytest.FixtureRequest) -> Iterator[ScriptedStore]:
    """A scripted store behind each kind of transport."""
    scripted = ScriptedStore(device=request.param == "device")
    yield scripted
    scripted.close()


@pytest.fixture
async def connected(store: ScriptedStore) -> AsyncIterator[Connected]:
    """A client and the other end of its connection."""
    async with StoreClient(store.endpoint) as client:
        yield client, await store.accept()


def soon(awaitable: Awaitable[object]) -> asyncio.Future[object]:
    """Let something happen meanwhile; it is waited for, for a while, by `asyncio.wait_for`."""
    return asyncio.ensure_future(awaitable)


async def result(future: Awaitable[object]) -> object:
    """Wait for a result, but not for ever."""
    return await asyncio.wait_for(future, DEADLINE_S)


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "op", "payload", "answer", "value"),
    [
        (lambda c: c.read("/a"), Op.READ, b"/a\0", b"\xffv", b"\xffv"),
        (lambda c: c.write("/a", "vä"), Op.WRITE, "/a\0vä".encode(), b"OK\0", None),
        (lambda c: c.write("/a", b"\xff"), Op.WRITE, b"/a\0\xff", b"OK\0", None),
        (lambda c: c.mkdir("/a"), Op.MKDIR, b"/a\0", b"OK\0", None),
        (lambda c: c.rm("/a"), Op.RM, b"/a\0", b"OK\0", None),
        (lambda c: c.get_perms("/a"), Op.GET_PERMS, b"/a\0", b"n3\0r0\0", ["n3", "r0"]),
        (lambda c: c.set_perms("/a", ["n3", "r0"]), Op.SET_PERMS, b"/a\0n3\0r0\0", b"OK\0", None),
        (lambda c: c.directory("/a"), Op.DIRECTORY, b"/a\0", b"x\0y\0", ["x", "y"]),
        (lambda c: c.introduce(3, 4096, 7), Op.INTRODUCE, b"3\0004096\0007\0", b"OK\0", None),
        (lambda c: c.release(3), Op.RELEASE, b"3\0", b"OK\0", None),
        (lambda c: c.resume(3), Op.RESUME, b"3\0", b"OK\0", None),
        (lambda c: c.set_target(3, 4), Op.SET_TARGET, b"3\0004\0", b"OK\0", None),
        (lambda c: c.is_domain_introduced(3), Op.IS_DOMAIN_INTRODUCED, b"3\0", b"T\0", True),
        (lambda c: c.get_domain_path(3), Op.GET_DOMAIN_PATH, b"3\0", b"/local/domain/3\0", "/local/domain/3"),
    ],
)
async def test_each_operation_says_what_the_protocol_wants(
    connected: Connected,
    ask: Callable[[StoreClient], Awaitable[object]],
    op: Op,
    payload: bytes,
    answer: bytes,
    value: object,
) -> None:
    """And returns its answer as a value."""
    client, peer = connected
    asked = soon(ask(client))
    await peer.answer(await peer.expect(op, payload), answer)
    assert await result(asked) == value


async def test_requests_travel_together_and_their_answers_may_come_in_any_order(connected: Connected) -> None:
    """Nobody waits for the answer before."""
    client, peer = connected
    reads = [client.read(f"/{number}") for number in range(100)]
    requests = [await peer.request() for _ in reads]
    for request in reversed(requests):
        await peer.answer(request, request.payload.rstrip(b"\0"))
    assert [await result(read) for read in reads] == [b"/%d" % number for number in range(100)]
    assert client.requests == 100


async def test_what_the_store_refuses_is_an_error_of_that_request(connected: Connected) -> None:
    """The others are answered."""
    client, peer = connected
    bad, good = client.read("/bad"), client.read("/good")
    await peer.refuse(await peer.request(), "ENOENT")
    await peer.answer(await peer.request(), b"v")
    with pytest.raises(NodeNotFound, match="READ /bad"):
        await result(bad)
    assert await result(good) == b"v"


async def test_bad_input_is_refused_by_the_call_and_nothing_is_sent(connected: Connected) -> None:
    """The next packet that the store sees is the next good request."""
    client, peer = connected
    for bad in (lambda: client.read("/a/"), lambda: client.write("no good", "v"), lambda: client.rm("")):
        with pytest.raises(InvalidPath):
            bad()
    with pytest.raises(InvalidPayload, match="at most"):
        client.write("/a", bytes(4094))
    with pytest.raises(InvalidPermission):
        client.set_perms("/a", ["everybody"])
    with pytest.raises(InvalidPath):
        await client.directory("//")
    with pytest.raises(InvalidPath):
        await client.watch("/a b")
    good = client.read("/good")
    await peer.answer(await peer.expect(Op.READ, b"/good\0"), b"v")
    assert await result(good) == b"v"
    assert client.requests == 1


async def test_a_request_that_its_asker_gave_up_harms_nobody(connected: Connected) -> None:
    """Its answer is dropped."""
    client, peer = connected
    given_up, other = client.read("/a"), client.read("/b")
    given_up.cancel()
    await peer.answer(await peer.request(), b"late")
    await peer.answer(await peer.request(), b"v")
    assert await result(other) == b"v"


async def test_a_window_bounds_what_is_in_flight(store: ScriptedStore) -> None:
    """The next request goes out when an answer has come."""
    async with StoreClient(store.endpoint, window=3) as client:
        peer = await store.accept()
        reads = [client.read(f"/{number}") for number in range(10)]
        waiting = [await peer.request() for _ in range(3)]
        for number in range(10):
            extra = soon(peer.request())
            await asyncio.sleep(0)
            assert not extra.done()
            await peer.answer(waiting.pop(0), b"%d" % number)
            if number < 7:
                request = await result(extra)
                assert isinstance(request, tuple)
                waiting.append(request)  # type: ignore[arg-type]  # a Message
            else:
                extra.cancel()
                await asyncio.wait([extra])
        assert [await result(read) for read in reads] == [b"%d" % number for number in range(10)]


# -- listings ---------------------------------------------------------------------------------------------------------


async def test_a_listing_over_4096_bytes_comes_in_parts(connected: Connected) -> None:
    """DIRECTORY_PART from where the part before ended, until the empty name."""
    client, peer = connected
    listing = soon(client.directory("/big"))
    await peer.refuse(await peer.expect(Op.DIRECTORY, b"/big\0"), "E2BIG")
    await peer.answer(await peer.expect(Op.DIRECTORY_PART, b"/big\x000\0"), b"17\0one\0two\0")
    await peer.answer(await peer.expect(Op.DIRECTORY_PART, b"/big\x008\0"), b"17\0three\0\0")
    assert await result(listing) == ["one", "two", "three"]


@pytest.mark.parametrize("last", [b"9\0\0", b"9\0x\0\0"])
async def test_a_listing_that_changes_meanwhile_begins_again(connected: Connected, last: bytes) -> None:
    """The generation says so; also where nothing is left of it."""
    client, peer = connected
    listing = soon(client.directory("/big"))
    await peer.refuse(await peer.request(), "E2BIG")
    await peer.answer(await peer.expect(Op.DIRECTORY_PART, b"/big\x000\0"), b"8\0one\0")
    await peer.answer(await peer.expect(Op.DIRECTORY_PART, b"/big\x004\0"), b"9\0two\0\0")
    await peer.answer(await peer.expect(Op.DIRECTORY_PART, b"/big\x000\0"), last)
    assert await result(listing) == ([] if last == b"9\0\0" else ["x"])


async def test_a_listing_that_never_holds_still_ends_in_an_error(connected: Connected) -> None:
    """Not in a loop."""
    client, peer = connected
    listing = soon(client.directory("/big"))
    await peer.refuse(await peer.request(), "E2BIG")
    number = 0
    while not listing.done():
        request = soon(peer.request())
        await asyncio.wait([request, listing], return_when=asyncio.FIRST_COMPLETED)
        if listing.done():
            request.cancel()
            await asyncio.wait([request])
            break
        number += 1
        await peer.answer(request.result(), b"%d\0name\0" % number)  # type: ignore[arg-type]  # a Message
    with pytest.raises(StoreError) as caught:
        await listing
    assert caught.value.errno == errno.EAGAIN
    assert number == 40


async def test_a_part_with_nothing_in_it_ends_in_an_error(connected: Connected) -> None:
    """Asking for the same offset again would last for ever."""
    client, peer = connected
    listing = soon(client.directory("/big"))
    await peer.refuse(await peer.request(), "E2BIG")
    await peer.answer(await peer.request(), b"8\0one\0")
    await peer.answer(await peer.request(), b"8\0")
    with pytest.raises(StoreError) as caught:
        await result(listing)
    assert caught.value.errno == errno.EIO


async def test_a_store_without_parts_says_that_the_listing_is_too_large(connected: Connected) -> None:
    """As libxenstore does: E2BIG."""
    client, peer = connected
    listing = soon(client.directory("/big"))
    await peer.refuse(await peer.request(), "E2BIG")
    await peer.refuse(await peer.request(), "ENOSYS")
    with pytest.raises(QuotaExceeded, match="DIRECTORY /big"):
        await result(listing)


async def test_a_store_that_closes_on_a_listing_is_not_asked_for_ever(
    store: ScriptedStore, connected: Connected
) -> None:
    """oxenstored 4.17: reconnect, try once more, then say so; and the client goes on."""
    client, peer = connected
    listing = soon(client.directory("/big"))
    await asyncio.sleep(0)
    behind = client.read("/a")
    for _ in range(2):
        await peer.expect(Op.DIRECTORY, b"/big\0")
        peer.close()
        peer = await store.accept()
    with pytest.raises(QuotaExceeded, match="DIRECTORY /big"):
        await result(listing)
    await peer.answer(await peer.expect(Op.READ, b"/a\0"), b"v")
    assert await result(behind) == b"v"
    assert client.reconnects == 2


# -- watches ----------------------------------------------------------------------------------------------------------


async def test_a_watch_hears_its_events_and_no_others(connected: Connected) -> None:
    """An event before the answer to WATCH counts; one with a token that nobody has is dropped."""
    client, peer = connected
    asked = soon(client.watch("/b", depth=1))
    request = await peer.request()
    _, token, _ = request.payload.decode().split("\0")
    await peer.event("/b", token)
    await peer.answer(request)
    watch = await result(asked)
    assert isinstance(watch, client_module.Watch)
    assert (watch.path, watch.token) == ("/b", token)
    assert await result(watch.wait()) == {"/b"}
    await peer.event("/b/1/state", "nobody")
    await peer.event("/b/2/state", token)
    assert await result(watch.wait()) == {"/b/2"}
    assert client.strays == 1


async def test_a_watch_that_is_refused_leaves_nothing_behind(connected: Connected) -> None:
    """Its token means nothing any more."""
    client, peer = connected
    asked = soon(client.watch("/b"))
    request = await peer.request()
    await peer.refuse(request, "EEXIST")
    with pytest.raises(NodeExists, match="WATCH /b"):
        await result(asked)
    await peer.event("/b", request.payload.decode().split("\0")[1])
    read = client.read("/a")
    await peer.answer(await peer.request(), b"v")
    await result(read)
    assert client.strays == 1


async def test_a_watch_that_its_asker_gave_up_is_given_back(connected: Connected) -> None:
    """A guest has few watches."""
    client, peer = connected
    asked = soon(client.watch("/b"))
    request = await peer.request()
    asked.cancel()
    await asyncio.wait([asked])
    await peer.answer(request)
    await peer.expect(Op.UNWATCH, request.payload)


async def watching(client: StoreClient, peer: Peer, path: str, **how: object) -> client_module.Watch:
    """Register a watch, its first event over."""
    asked = asyncio.ensure_future(client.watch(path, **how))  # type: ignore[arg-type]  # depth, wake
    token = await peer.watch(path)
    watch = await asked
    await peer.event(path, token)
    assert await result(watch.wait()) == {path}
    return watch


async def test_a_storm_of_events_is_taken_in_with_flat_memory(connected: Connected) -> None:
    """A hundred thousand events, one hint; and the request behind them is answered."""
    client, peer = connected
    wakes: list[int] = []
    watch = await watching(client, peer, "/b", depth=1, wake=lambda: wakes.append(1))
    del wakes[:]
    payload = f"/b/1/state\0{watch.token}\0".encode()
    storm = (HEADER.pack(Op.WATCH_EVENT, 0, 0, len(payload)) + payload) * 1000
    read = client.read("/a")
    request = await peer.request()
    for _ in range(100):
        await peer.send(storm)
    await peer.answer(request, b"v")
    assert await result(read) == b"v"
    assert watch.take() == {"/b/1"}
    assert wakes == [1]
    assert len(client._session._rest) == 0


async def test_unwatch_tells_the_store_once(connected: Connected) -> None:
    """And does not mind that the store says no."""
    client, peer = connected
    watch = await watching(client, peer, "/b")
    given_back = soon(watch.unwatch())
    await peer.refuse(await peer.expect(Op.UNWATCH, f"/b\0{watch.token}\0".encode()), "ENOENT")
    await result(given_back)
    await result(watch.unwatch())
    read = client.read("/a")
    await peer.answer(await peer.expect(Op.READ, b"/a\0"), b"v")
    await result(read)


async def test_what_a_wake_raises_is_not_the_stores_trouble(connected: Connected) -> None:
    """The connection lives on; the loop hears of it."""
    client, peer = connected
    heard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(str(context["exception"])))

    def wake() -> None:
        raise RuntimeError("a driver's bug")

    await watching(client, peer, "/b", wake=wake)
    read = client.read("/a")
    await peer.answer(await peer.request(), b"v")
    assert await result(read) == b"v"
    assert (heard, client.generation) == (["a driver's bug"], 0)


# -- the connection is lost -------------------------------------------------------------------------------------------


async def test_a_lost_connection_comes_back_with_watches_and_requests(
    store: ScriptedStore, connected: Connected
) -> None:
    """Watches first; nobody who asked notices; on_lost and on_back are called."""
    client, peer = connected
    heard: list[str] = []
    client.on_lost = lambda reason: heard.append("lost: " + reason)
    client.on_back = lambda: heard.append("back")
    watch = await watching(client, peer, "/b")
    pending = [client.read("/a"), client.write("/c", "v")]
    await peer.request()
    store.silent = 2
    peer.close()
    peer = await store.accept()
    assert await peer.watch("/b") == watch.token
    await peer.event("/b", watch.token)
    await peer.answer(await peer.expect(Op.READ, b"/a\0"), b"v")
    await peer.answer(await peer.expect(Op.WRITE, b"/c\0v"))
    assert [await result(future) for future in pending] == [b"v", None]
    assert await result(watch.wait()) == {"/b"}
    assert (client.connected, client.reconnects, store.attempts) == (True, 1, 4)
    assert heard[0].startswith("lost: ")
    assert heard[1:] == ["back"]


async def test_what_is_asked_while_the_store_is_away_waits_for_it(store: ScriptedStore, connected: Connected) -> None:
    """Also a watch, which is registered once."""
    client, peer = connected
    lost = asyncio.Event()
    client.on_lost = lambda _: lost.set()
    store.silent = 3
    peer.close()
    await result(lost.wait())
    assert not client.connected
    read, asked = client.read("/a"), soon(client.watch("/b"))
    peer = await store.accept()
    await peer.answer(await peer.expect(Op.READ, b"/a\0"), b"v")
    await peer.watch("/b")
    assert await result(read) == b"v"
    await result(asked)


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_garbage_is_a_lost_connection(store: ScriptedStore, connected: Connected, garbage: bytes) -> None:
    """What came with it is dropped, the request is asked again on a new connection, and the reason is told."""
    client, peer = connected
    reasons: list[str] = []
    client.on_lost = reasons.append
    read = client.read("/a")
    await peer.request()
    await peer.send(garbage)
    assert await peer.hung_up() == b""
    peer = await store.accept()
    await peer.answer(await peer.expect(Op.READ, b"/a\0"), b"v")
    assert await result(read) == b"v"
    assert len(reasons) == 1
    assert "the store sent a packet" in reasons[0]


async def test_half_a_packet_before_the_loss_is_forgotten(store: ScriptedStore, connected: Connected) -> None:
    """The new connection starts at a packet's beginning."""
    client, peer = connected
    read = client.read("/a")
    request = await peer.request()
    await peer.send(HEADER.pack(Op.READ, request.req_id, 0, 100) + b"half")
    peer.close()
    peer = await store.accept()
    await peer.answer(await peer.request(), b"v")
    assert await result(read) == b"v"


async def test_a_watch_that_cannot_be_registered_again_says_so(store: ScriptedStore, connected: Connected) -> None:
    """A holder must not wait for hints that will never come."""
    client, peer = connected
    woken = asyncio.Event()
    watch = await watching(client, peer, "/b", wake=woken.set)
    woken.clear()
    peer.close()
    peer = await store.accept()
    await peer.refuse(await peer.request(), "ENOSPC")
    await result(woken.wait())
    with pytest.raises(QuotaExceeded, match="WATCH /b"):
        watch.take()


async def test_unwatch_while_the_store_is_away_is_done_at_once(store: ScriptedStore, connected: Connected) -> None:
    """Its connection took the watch along; it is not registered again."""
    client, peer = connected
    watch = await watching(client, peer, "/b")
    lost = asyncio.Event()
    client.on_lost = lambda _: lost.set()
    store.silent = 1
    peer.close()
    await result(lost.wait())
    await result(watch.unwatch())
    peer = await store.accept()
    read = client.read("/a")
    await peer.answer(await peer.expect(Op.READ, b"/a\0"), b"v")
    await result(read)


async def test_a_store_that_is_away_is_asked_ever_more_rarely(
    store: ScriptedStore, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waits double up to a bound, with jitter; once it has said something they start again."""
    client, peer = connected
    waits: list[float] = []
    monkeypatch.setattr(client_module.random, "uniform", lambda _, high: waits.append(client._delay_s) or high)
    store.silent = 5
    peer.close()
    peer = await store.accept()
    assert waits == [0.0002, 0.0004, 0.0008, 0.001, 0.001, 0.001]
    read = client.read("/a")
    await peer.answer(await peer.request(), b"v")
    await result(read)
    peer.close()
    await store.accept()
    assert waits[6:] == [0.0002]


# -- transactions -----------------------------------------------------------------------------------------------------


async def begin(peer: Peer, tx_id: int) -> None:
    """Accept the beginning of a transaction."""
    await peer.answer(await peer.expect(Op.TRANSACTION_START, b"\0"), b"%d\0" % tx_id)


async def move(tx: Transaction) -> str:
    """A body: read a node, write another."""
    value = await tx.read("/from")
    await tx.write("/to", value)
    return value.decode()


async def test_a_transaction_commits_what_its_body_did(connected: Connected) -> None:
    """Every request carries its id; the body's result is returned."""
    client, peer = connected
    moved = soon(client.transaction(move))
    await begin(peer, 7)
    read = await peer.expect(Op.READ, b"/from\0")
    await peer.answer(read, b"v")
    write = await peer.expect(Op.WRITE, b"/to\0v")
    await peer.answer(write)
    end = await peer.expect(Op.TRANSACTION_END, b"T\0")
    await peer.answer(end)
    assert await result(moved) == "v"
    assert {request.tx_id for request in (read, write, end)} == {7}


async def test_a_conflict_does_the_whole_body_again(connected: Connected) -> None:
    """Reads included (T6)."""
    client, peer = connected
    moved = soon(client.transaction(move))
    for tx_id, value in ((7, b"old"), (8, b"new")):
        await begin(peer, tx_id)
        await peer.answer(await peer.expect(Op.READ, b"/from\0"), value)
        await peer.answer(await peer.expect(Op.WRITE, b"/to\0" + value))
        end = await peer.expect(Op.TRANSACTION_END, b"T\0")
        if tx_id == 7:
            await peer.refuse(end, "EAGAIN")
        else:
            await peer.answer(end)
    assert await result(moved) == "new"


async def test_a_transaction_that_always_conflicts_ends_in_an_error(connected: Connected) -> None:
    """Once and 20 times again, not for ever."""
    client, peer = connected
    runs: list[int] = []

    async def body(tx: Transaction) -> None:
        runs.append(1)
        tx.rm("/a")

    hopeless = soon(client.transaction(body))
    for tx_id in range(1, RETRIES_MAX + 2):
        await begin(peer, tx_id)
        await peer.answer(await peer.expect(Op.RM, b"/a\0"))
        await peer.refuse(await peer.expect(Op.TRANSACTION_END, b"T\0"), "EAGAIN")
    with pytest.raises(TransactionConflict):
        await result(hopeless)
    assert len(runs) == RETRIES_MAX + 1


@pytest.mark.parametrize("failing", ["body", "store"])
async def test_a_body_that_raises_is_aborted(connected: Connected, failing: str) -> None:
    """Its exception is passed on, and the transaction does not stay open in the store."""
    client, peer = connected

    async def body(tx: Transaction) -> None:
        await tx.read("/a")
        raise KeyError("the body's own")

    failed = soon(client.transaction(body))
    await begin(peer, 7)
    read = await peer.request()
    await (peer.refuse(read, "ENOENT") if failing == "store" else peer.answer(read, b"v"))
    with pytest.raises(NodeNotFound if failing == "store" else KeyError):
        await result(failed)
    end = await peer.expect(Op.TRANSACTION_END, b"F\0")
    assert end.tx_id == 7
    await peer.answer(end)


async def test_a_change_that_failed_unseen_is_not_committed_around(connected: Connected) -> None:
    """A body need not wait for each write, and still none is lost in silence."""
    client, peer = connected

    async def body(tx: Transaction) -> None:
        tx.write("/denied", "v")
        await tx.write("/fine", "v")

    failed = soon(client.transaction(body))
    await begin(peer, 7)
    await peer.refuse(await peer.request(), "EACCES")
    await peer.answer(await peer.request())
    with pytest.raises(StoreError, match="WRITE /denied"):
        await result(failed)
    await peer.expect(Op.TRANSACTION_END, b"F\0")


async def test_a_failure_that_the_body_has_dealt_with_is_no_obstacle(connected: Connected) -> None:
    """A missing node may be what it wanted to know."""
    client, peer = connected

    async def body(tx: Transaction) -> str:
        try:
            await tx.read("/a")
        except NodeNotFound:
            tx.mkdir("/a")
            return "made"
        return "there"

    made = soon(client.transaction(body))
    await begin(peer, 7)
    await peer.refuse(await peer.request(), "ENOENT")
    await peer.answer(await peer.expect(Op.MKDIR, b"/a\0"))
    await peer.answer(await peer.expect(Op.TRANSACTION_END, b"T\0"))
    assert await result(made) == "made"


async def test_a_body_that_asks_for_nothing_commits_nothing(connected: Connected) -> None:
    """There is nothing to conflict with."""
    client, peer = connected

    async def body(tx: Transaction) -> int:
        del tx
        return 5

    idle = soon(client.transaction(body))
    await begin(peer, 7)
    await peer.answer(await peer.expect(Op.TRANSACTION_END, b"F\0"))
    assert await result(idle) == 5


async def test_a_transaction_given_up_while_it_begins_is_aborted(connected: Connected) -> None:
    """The store has opened it; nobody else would close it."""
    client, peer = connected
    given_up = soon(client.transaction(move))
    start = await peer.expect(Op.TRANSACTION_START, b"\0")
    given_up.cancel()
    await asyncio.wait([given_up])
    await peer.answer(start, b"7\0")
    assert (await peer.expect(Op.TRANSACTION_END, b"F\0")).tx_id == 7


async def test_a_transaction_given_up_in_its_body_is_aborted(connected: Connected) -> None:
    """Without waiting for the store."""
    client, peer = connected
    given_up = soon(client.transaction(move))
    await begin(peer, 7)
    await peer.expect(Op.READ, b"/from\0")
    given_up.cancel()
    await asyncio.wait([given_up])
    assert given_up.cancelled()
    assert (await peer.expect(Op.TRANSACTION_END, b"F\0")).tx_id == 7


@pytest.mark.parametrize("when", ["start", "body", "commit"])
async def test_a_transaction_whose_connection_is_lost_is_done_again(
    store: ScriptedStore, connected: Connected, when: str
) -> None:
    """From the body's start, on the new connection, with a new id; the caller does not notice."""
    client, peer = connected
    moved = soon(client.transaction(move))
    if when == "start":
        await peer.expect(Op.TRANSACTION_START, b"\0")
    else:
        await begin(peer, 7)
        read = await peer.expect(Op.READ, b"/from\0")
        if when == "commit":
            await peer.answer(read, b"old")
            await peer.answer(await peer.expect(Op.WRITE, b"/to\0old"))
            await peer.expect(Op.TRANSACTION_END, b"T\0")
    peer.close()
    peer = await store.accept()
    await begin(peer, 1)
    await peer.answer(await peer.expect(Op.READ, b"/from\0"), b"new")
    write = await peer.expect(Op.WRITE, b"/to\0new")
    assert write.tx_id == 1
    await peer.answer(write)
    await peer.answer(await peer.expect(Op.TRANSACTION_END, b"T\0"))
    assert await result(moved) == "new"


async def test_an_id_of_a_lost_connection_is_never_used_on_the_next(store: ScriptedStore, connected: Connected) -> None:
    """A body that goes on after the loss sends nothing: the store may have given the same id to another."""
    client, peer = connected
    lost = asyncio.Event()
    client.on_lost = lambda _: lost.set()
    runs: list[int] = []

    async def body(tx: Transaction) -> None:
        runs.append(1)
        if len(runs) == 1:
            peer.close()
            await lost.wait()
            assert tx.lost
            with pytest.raises(StoreLost):
                await tx.read("/a")
            raise ValueError("and whatever a body makes of it") from StoreLost("it")
        await tx.read("/b")

    done = soon(client.transaction(body))
    await begin(peer, 7)
    peer2 = await store.accept()
    await begin(peer2, 7)
    await peer2.answer(await peer2.expect(Op.READ, b"/b\0"), b"v")
    await peer2.answer(await peer2.expect(Op.TRANSACTION_END, b"T\0"))
    await result(done)
    assert len(runs) == 2


async def test_a_listing_that_closes_the_connection_ends_a_transaction_too(
    store: ScriptedStore, connected: Connected
) -> None:
    """Redoing the body for ever would not help."""
    client, peer = connected

    async def body(tx: Transaction) -> list[str]:
        return await tx.directory("/big")

    listing = soon(client.transaction(body))
    for tx_id in (7, 8):
        await begin(peer, tx_id)
        await peer.expect(Op.DIRECTORY, b"/big\0")
        peer.close()
        peer = await store.accept()
    with pytest.raises(QuotaExceeded, match="DIRECTORY /big"):
        await result(listing)


async def test_a_transaction_kept_by_its_body_is_of_no_use_afterwards(connected: Connected) -> None:
    """That is a bug of ours, and says so."""
    client, peer = connected

    async def body(tx: Transaction) -> Transaction:
        return tx

    kept = asyncio.ensure_future(client.transaction(body))
    await begin(peer, 7)
    await peer.answer(await peer.request())
    tx = await kept
    with pytest.raises(LocalProtocolError, match="has ended"):
        tx.read("/a")


async def test_a_guest_has_a_bounded_number_of_transactions_open(store: ScriptedStore) -> None:
    """Its quota is 10 (T13)."""
    async with StoreClient(store.endpoint, window=20) as client:
        peer = await store.accept()
        release = asyncio.Event()

        async def body(tx: Transaction) -> None:
            del tx
            await release.wait()

        many = [soon(client.transaction(body)) for _ in range(12)]
        for tx_id in range(1, 9):
            await begin(peer, tx_id)
        extra = soon(peer.request())
        await asyncio.sleep(0)
        assert not extra.done()
        release.set()
        request = await extra
        started = 8
        while True:
            if request.op == Op.TRANSACTION_START:  # type: ignore[attr-defined]  # a Message
                started += 1
                await peer.answer(request, b"%d\0" % started)  # type: ignore[arg-type]
            else:
                await peer.answer(request)  # type: ignore[arg-type]
            if all(one.done() for one in many):
                break
            following = soon(peer.request())
            await asyncio.wait([following, *many], return_when=asyncio.ALL_COMPLETED, timeout=0)
            await asyncio.wait([following, asyncio.gather(*many)], return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                await asyncio.wait([following])
                break
            request = following.result()
        assert started == 12


# -- opening and closing ----------------------------------------------------------------------------------------------


async def test_opening_fails_when_nobody_answers_and_may_be_tried_again(store: ScriptedStore) -> None:
    """Only a connection that was there once is waited for."""
    store.silent = 1
    client = StoreClient(store.endpoint)
    with pytest.raises(StoreLost, match="no store answers"):
        await client.open()
    with pytest.raises(LocalProtocolError, match="open the store client"):
        client.read("/a")
    await client.open()
    assert client.connected
    with pytest.raises(LocalProtocolError, match="opened once"):
        await client.open()
    await client.close()


async def test_closing_fails_what_is_pending_and_every_watch(store: ScriptedStore) -> None:
    """With StoreLost, which nobody sees otherwise; twice is as good as once."""
    client = StoreClient(store.endpoint)
    await client.open()
    peer = await store.accept()
    watch = await watching(client, peer, "/b")
    waiting, read = soon(watch.wait()), client.read("/a")
    in_transaction = soon(client.transaction(move))
    await peer.expect(Op.READ, b"/a\0")
    await client.close()
    await client.close()
    for pending in (read, waiting, in_transaction, client.read("/b")):
        with pytest.raises(StoreLost, match="closed"):
            await result(pending)
    await peer.hung_up()
    await result(watch.unwatch())
    assert not client.connected
    assert "closed" in repr(client)


async def test_closing_while_the_store_is_away_ends_the_search(store: ScriptedStore) -> None:
    """No attempt is made afterwards."""
    client = StoreClient(store.endpoint)
    await client.open()
    peer = await store.accept()
    lost = asyncio.Event()
    client.on_lost = lambda _: lost.set()
    store.silent = 1_000_000
    peer.close()
    await result(lost.wait())
    read = client.read("/a")
    await client.close()
    attempts = store.attempts
    with pytest.raises(StoreLost):
        await result(read)
    await asyncio.sleep(0)
    assert store.attempts == attempts
