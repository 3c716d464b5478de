"""One connection to an NBD server: replies in any order and any pieces, and servers that break the protocol."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.doubles.nbd_bench import until
from xenbusd_vbd.nbd.client import NbdClient, write_message
from xenbusd_vbd.nbd.wire import REQUEST, Command, simple_reply


class Pair:
    """A client, and the other end of its socket in the test's hand."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.answers: list[tuple[str, int]] = []
        self.batches = 0
        self.lost: list[str] = []
        self.client: NbdClient[str] = NbdClient(ours, self._answered, self.lost.append)

    def _answered(self, answers: list[tuple[str, int]]) -> None:
        self.answers += answers
        self.batches += 1

    async def received(self, length: int) -> bytes:
        """Exactly so many bytes of what the client has sent."""
        loop, data = asyncio.get_running_loop(), b""
        async with asyncio.timeout(60):
            while len(data) < length:
                data += await loop.sock_recv(self.theirs, length - len(data))
        return data

    async def say(self, data: bytes) -> None:
        """Send to the client."""
        async with asyncio.timeout(60):
            await asyncio.get_running_loop().sock_sendall(self.theirs, data)

    def close(self) -> None:
        """Both ends."""
        self.client.close()
        self.theirs.close()


def views(*lengths: int) -> list[memoryview]:
    """Memory for a read, in pieces."""
    return [memoryview(bytearray(length)) for length in lengths]


async def test_a_batch_of_requests_goes_out_in_order() -> None:
    """Nothing is sent before `send`; then all is, each with a handle of its own."""
    pair = Pair()
    pair.client.read("r", 4096, 1024, views(1024))
    pair.client.write("w", write_message(512, views(512, 1024)))
    pair.client.command("f", Command.FLUSH)
    pair.client.command("t", Command.TRIM, 8192, 4096)
    with pytest.raises(BlockingIOError):
        pair.theirs.recv(1)
    pair.client.send()
    sent = await pair.received(4 * REQUEST.size + 1536)
    heads = [REQUEST.unpack_from(sent, at) for at in (0, 28, 56 + 1536, 84 + 1536)]
    assert [head[2:] for head in heads] == [
        (Command.READ, 1, 4096, 1024),
        (Command.WRITE, 2, 512, 1536),
        (Command.FLUSH, 3, 0, 0),
        (Command.TRIM, 4, 8192, 4096),
    ]
    assert pair.client.unanswered == ["r", "w", "f", "t"]
    pair.close()


async def test_a_write_has_its_own_copy() -> None:
    """What the guest does to its memory afterwards changes nothing."""
    memory = bytearray(b"a" * 512)
    message = write_message(0, [memoryview(memory)])
    memory[:] = b"b" * 512
    assert message[REQUEST.size :] == b"a" * 512


@pytest.mark.parametrize("step", [1, 7, 16, 1000, 1 << 20])
async def test_replies_in_any_order_and_any_pieces(step: int) -> None:
    """However the stream is cut, each read gets its own data, across all of its pieces of memory."""
    pair = Pair()
    first, second = views(512, 512, 1024), views(1536)
    pair.client.read("first", 0, 2048, first)
    pair.client.command("flush", Command.FLUSH)
    pair.client.read("second", 0, 1536, second)
    pair.client.read("failed", 0, 512, views(512))
    stream = simple_reply(3) + b"2" * 1536 + simple_reply(4, 5) + simple_reply(1) + b"1" * 2048 + simple_reply(2)
    for at in range(0, len(stream), step):
        await pair.say(stream[at : at + step])
        await asyncio.sleep(0)
    await until(lambda: len(pair.answers) == 4)
    assert pair.answers == [("second", 0), ("failed", 5), ("first", 0), ("flush", 0)]
    assert (b"".join(first), b"".join(second)) == (b"1" * 2048, b"2" * 1536)
    assert pair.client.unanswered == []
    pair.close()


async def test_large_transfers() -> None:
    """More than any socket's buffer holds, in both directions, with many pieces."""
    pair = Pair()
    into = views(*[4096] * 2048)
    data = bytes(range(256)) * 32768
    pair.client.write("w", write_message(0, [memoryview(data)]))
    pair.client.read("r", 0, len(data), into)
    pair.client.send()
    assert (await pair.received(28 + len(data) + 28))[28:-28] == data
    await pair.say(simple_reply(1) + simple_reply(2) + data)
    await until(lambda: len(pair.answers) == 2)
    assert b"".join(into) == data
    pair.close()


async def test_answers_come_in_batches() -> None:
    """Replies that arrive together are handed over together."""
    pair = Pair()
    for number in range(32):
        pair.client.read(str(number), 0, 512, views(512))
    await pair.say(b"".join(simple_reply(handle + 1) + bytes(512) for handle in range(32)))
    await until(lambda: len(pair.answers) == 32)
    assert pair.batches < 32
    pair.close()


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        (b"x" * 16, "begins with"),
        (simple_reply(7), "handle 7"),
        (simple_reply(1) + bytes(512) + simple_reply(1), "handle 1"),
        (b"", "closed"),
        (simple_reply(1) + bytes(100), "closed"),
    ],
)
async def test_a_server_that_breaks_the_protocol(stream: bytes, sentence: str) -> None:
    """`lost` is called once, and `unanswered` has the requests without an answer, in order."""
    pair = Pair()
    pair.client.read("r", 0, 512, views(512))
    pair.client.command("f", Command.FLUSH)
    await pair.say(stream)
    pair.theirs.shutdown(socket.SHUT_WR)
    await until(lambda: bool(pair.lost))
    assert [sentence in reason for reason in pair.lost] == [True]
    answered = [token for token, _ in pair.answers]
    assert answered + pair.client.unanswered == ["r", "f"]
    pair.client.send()
    pair.close()
    assert len(pair.lost) == 1


async def test_the_server_is_gone_when_we_send() -> None:
    """`send` does not raise and does not call back: `lost` is called a moment later."""
    pair = Pair()
    pair.theirs.close()
    pair.client.command("f", Command.FLUSH)
    pair.client.send()
    assert pair.lost == []
    await until(lambda: bool(pair.lost))
    assert (pair.client.ended, pair.client.unanswered) == (True, ["f"])


async def test_close_says_goodbye() -> None:
    """DISC, and then nothing; `lost` is not called."""
    pair = Pair()
    pair.client.close()
    pair.client.close()
    assert REQUEST.unpack(await pair.received(REQUEST.size))[2] == Command.DISC
    assert await pair.received(0) == pair.theirs.recv(1) == b""
    await asyncio.sleep(0)
    assert pair.lost == []
    pair.theirs.close()
