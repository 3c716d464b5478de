"""A client whose connection to the store is lost, refused or closed."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.doubles.scripted_store import Peer, ScriptedStore, result, soon, watching
from xenbusd.errors import LocalProtocolError, QuotaExceeded, StoreLost
from xenbusd.store import client as client_module
from xenbusd.store import transport as transport_module
from xenbusd.store.client import StoreClient
from xenbusd.store.endpoint import Endpoint
from xenbusd.store.transaction import Transaction
from xenbusd.store.transport import Transport
from xenbusd.store.wire import HEADER, Op

Connected = tuple[StoreClient, Peer]


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


@pytest.mark.parametrize("first", [b"half a packet", b"\xff" * 16, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
async def test_what_a_store_says_before_it_is_asked_does_not_reach_the_next_connection(
    store: ScriptedStore, first: bytes, closes: bool
) -> None:
    """Whether it hangs up, too, before the client has begun, or not."""
    async with StoreClient(store.endpoint) as client:
        peer = await store.accept()
        store.greeting = (first if closes else first + b"\xff" * 32, closes)
        peer.close()
        read = client.read("/a")
        peer = await store.accept()
        peer = await store.accept()
        await peer.answer(await peer.expect(Op.READ, b"/a\0"), b"v")
        assert await result(read) == b"v"


async def test_a_connection_that_ends_while_it_is_made_leaves_nothing(
    store: ScriptedStore, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the bytes that came over it; the next one is tried."""
    client, peer = connected
    attempts: list[Transport] = []

    async def ending(endpoint: Endpoint, **callbacks: Any) -> Transport:
        transport = await transport_module.connect(endpoint, **callbacks)
        attempts.append(transport)
        if len(attempts) == 1:
            callbacks["received"](b"half a packet")
            await transport.close()
            callbacks["ended"]("at once")
        return transport

    monkeypatch.setattr(client_module, "connect", ending)
    peer.close()
    read = client.read("/a")
    await store.accept()
    peer = await store.accept()
    await peer.answer(await peer.expect(Op.READ, b"/a\0"), b"v")
    assert await result(read) == b"v"
    assert (len(attempts), client.reconnects, client.generation) == (2, 1, 1)


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

    def longest(low: float, high: float) -> float:
        assert 0 < low < high
        waits.append(client._delay_s)
        return high

    monkeypatch.setattr(random, "uniform", longest)
    store.silent = 5
    peer.close()
    peer = await store.accept()
    assert waits == [0.0002, 0.0004, 0.0008, 0.001, 0.001, 0.001]
    read = client.read("/a")
    await peer.answer(await peer.request(), b"v")
    await result(read)
    peer.close()
    pending = client.read("/a")
    peer = await store.accept()
    assert waits[6:] == [0.0002]
    for _ in range(2):
        await peer.expect(Op.READ, b"/a\0")
        await peer.send(b"\xff" * 16)
        peer = await store.accept()
    assert waits[7:] == [0.0004, 0.0008], "garbage says nothing"
    await peer.answer(await peer.request(), b"v")
    await result(pending)


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


async def read_one(tx: Transaction) -> bytes:
    """A body."""
    return await tx.read("/from")


async def test_closing_fails_what_is_pending_and_every_watch(store: ScriptedStore) -> None:
    """With StoreLost, which nobody sees otherwise; twice is as good as once."""
    client = StoreClient(store.endpoint)
    await client.open()
    peer = await store.accept()
    watch = await watching(client, peer, "/b")
    waiting, read = soon(watch.wait()), client.read("/a")
    in_transaction = soon(client.transaction(read_one))
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
