"""Transactions with a scripted store: repeated until they commit."""

from __future__ import annotations

import asyncio

import pytest

from tests.doubles.scripted_store import Peer, ScriptedStore, result, soon
from xenbusd.errors import LocalProtocolError, NodeNotFound, QuotaExceeded, StoreError, StoreLost, TransactionConflict
from xenbusd.store.client import GUEST_TRANSACTIONS_MAX, StoreClient
from xenbusd.store.transaction import RETRIES_MAX, Transaction
from xenbusd.store.wire import Op

Connected = tuple[StoreClient, Peer]


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
    """Using it is a bug of ours, and the error says so."""
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
    """Its quota is 10 (T13); the others wait for their turn."""
    async with StoreClient(store.endpoint, window=20) as client:
        peer = await store.accept()
        release = asyncio.Event()

        async def body(tx: Transaction) -> None:
            del tx
            await release.wait()

        many = [soon(client.transaction(body)) for _ in range(12)]
        starts = [await peer.expect(Op.TRANSACTION_START, b"\0") for _ in range(GUEST_TRANSACTIONS_MAX)]
        assert client.requests == GUEST_TRANSACTIONS_MAX == 8
        release.set()
        for number in range(len(many)):
            await peer.answer(starts[number], b"%d\0" % (number + 1))
            await peer.answer(await peer.expect(Op.TRANSACTION_END, b"F\0"))
            if number < 4:
                starts.append(await peer.expect(Op.TRANSACTION_START, b"\0"))
        for one in many:
            await result(one)
