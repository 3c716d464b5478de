"""A client of a scripted store: requests and watches."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.doubles.scripted_store import Peer, ScriptedStore, result, soon, watching
from xenbusd.errors import LocalProtocolError, NodeExists, NodeNotFound
from xenbusd.store.client import StoreClient
from xenbusd.store.watch import Watch
from xenbusd.store.wire import HEADER, Op

Connected = tuple[StoreClient, Peer]


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
            assert peer.nothing_more()
            await peer.answer(waiting.pop(0), b"%d" % number)
            if number < 7:
                waiting.append(await peer.request())
        assert [await result(read) for read in reads] == [b"%d" % number for number in range(10)]


async def test_an_endpoint_may_take_one_request_at_a_time(store: ScriptedStore) -> None:
    """On such an endpoint, as the kernel's device is one, a request waits for the answer to the one before it."""
    endpoint = replace(store.endpoint, one_at_a_time=True)
    async with StoreClient(endpoint) as client:
        peer = await store.accept()
        answers = [client.read(path) for path in ("/a", "/b")]
        first = await peer.expect(Op.READ, b"/a\0")
        assert peer.nothing_more()
        await peer.answer(first, b"1")
        await peer.answer(await peer.expect(Op.READ, b"/b\0"), b"2")
        assert [await result(answer) for answer in answers] == [b"1", b"2"]


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
    assert isinstance(watch, Watch)
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


async def test_a_window_that_is_known_later(store: ScriptedStore) -> None:
    """It holds from then on, and is not changed while requests are in flight."""
    async with StoreClient(store.endpoint) as client:
        peer = await store.accept()
        domid = client.read("domid")
        with pytest.raises(LocalProtocolError, match="in flight"):
            client.set_window(1)
        await peer.answer(await peer.request(), b"7")
        assert await result(domid) == b"7"
        client.set_window(1)
        answers = [client.read(path) for path in ("/a", "/b")]
        first = await peer.expect(Op.READ, b"/a\0")
        assert peer.nothing_more()
        await peer.answer(first, b"1")
        await peer.answer(await peer.expect(Op.READ, b"/b\0"), b"2")
        assert [await result(answer) for answer in answers] == [b"1", b"2"]
