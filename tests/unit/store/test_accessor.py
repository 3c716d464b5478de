"""The operations on nodes, and listings of any length, with a scripted store."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import pytest

from tests.doubles.scripted_store import Peer, ScriptedStore, result, soon
from xenbusd.errors import QuotaExceeded, StoreError
from xenbusd.store.client import StoreClient
from xenbusd.store.wire import InvalidPath, InvalidPayload, InvalidPermission, Op

Connected = tuple[StoreClient, Peer]


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
        await peer.answer(request.result(), b"%d\0name\0" % number)
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
