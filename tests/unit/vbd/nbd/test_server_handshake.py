"""The NBD handshake, message by message, as a client sees it."""

from __future__ import annotations

import struct

import pytest

from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.server_handshake import OPTION_DATA_MAX, OPTIONS_MAX, Handshake, Stage, parse_info_request
from xenbusd_vbd.nbd.wire import Info, Offer, Option, Reply, TransmissionFlags, WireError

FLAGS = TransmissionFlags.HAS_FLAGS | TransmissionFlags.SEND_FLUSH
OFFER = Offer("vbd-51712", "a disk", 1 << 20, FLAGS, 512, 4096, wire.REQUEST_DATA_MAX)
CLIENT_FLAGS = struct.pack(">I", 3)


def option(number: int, data: bytes = b"") -> bytes:
    """One option as a client sends it."""
    return wire.OPTION.pack(wire.IHAVEOPT, number, len(data)) + data


def info_request(name: bytes, *wanted: int) -> bytes:
    """The data of an INFO or GO option."""
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Take option replies apart: (option, kind, data)."""
    found = []
    while data:
        magic, number, kind, length = wire.OPTION_REPLY.unpack_from(data)
        assert magic == wire.OPTION_REPLY_MAGIC
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def negotiating() -> Handshake:
    """A handshake whose client has answered the greeting."""
    handshake = Handshake(OFFER)
    assert handshake.feed(CLIENT_FLAGS) == (4, b"")
    return handshake


def ask(handshake: Handshake, number: int, data: bytes = b"") -> list[tuple[int, int, bytes]]:
    """Send one option and take the replies apart."""
    message = option(number, data)
    used, reply = handshake.feed(message)
    assert used == len(message)
    return replies(reply)


def test_greeting() -> None:
    """The server begins with both magics and says fixed newstyle without zeroes."""
    assert Handshake.greeting == b"NBDMAGICIHAVEOPT\0\3"


@pytest.mark.parametrize("name", [b"", b"vbd-51712"])
def test_go_by_either_name(name: bytes) -> None:
    """GO names size, flags and block sizes, and then requests follow."""
    handshake = negotiating()
    assert ask(handshake, Option.GO, info_request(name)) == [
        (Option.GO, Reply.INFO, struct.pack(">HQH", Info.EXPORT, 1 << 20, FLAGS)),
        (Option.GO, Reply.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, 512, 4096, 32 << 20)),
        (Option.GO, Reply.ACK, b""),
    ]
    assert handshake.stage is Stage.TRANSMISSION


def test_info_tells_what_is_asked_and_stays() -> None:
    """INFO gives name and description to a client that wants them; the handshake goes on."""
    handshake = negotiating()
    answers = ask(handshake, Option.INFO, info_request(b"", Info.NAME, Info.DESCRIPTION, 77))
    assert (Option.INFO, Reply.INFO, b"\0\1vbd-51712") in answers
    assert (Option.INFO, Reply.INFO, b"\0\2a disk") in answers
    assert answers[-1] == (Option.INFO, Reply.ACK, b"")
    assert handshake.stage is Stage.NEGOTIATING


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_unknown_export(number: Option) -> None:
    """A name that is not ours is ERR_UNKNOWN with a sentence, and the client may ask again."""
    handshake = negotiating()
    ((_, kind, why),) = ask(handshake, number, info_request(b"xvdb"))
    assert kind == Reply.ERR_UNKNOWN
    assert b"vbd-51712" in why
    assert handshake.stage is Stage.NEGOTIATING


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\0\0", b"\0\0\0\1\0\0", info_request(b"x") + b"\0", info_request(b"x", 3)[:-1], b"\xff" * 6]
)
def test_info_request_that_does_not_add_up(data: bytes) -> None:
    """Lengths that contradict each other are ERR_INVALID."""
    with pytest.raises(ValueError, match="option"):
        parse_info_request(data)
    ((_, kind, _why),) = ask(negotiating(), Option.GO, data)
    assert kind == Reply.ERR_INVALID


def test_list() -> None:
    """LIST names the one export with its description."""
    assert ask(negotiating(), Option.LIST) == [
        (Option.LIST, Reply.SERVER, b"\0\0\0\x09vbd-51712a disk"),
        (Option.LIST, Reply.ACK, b""),
    ]


@pytest.mark.parametrize("number", [Option.LIST, Option.STRUCTURED_REPLY])
def test_data_where_none_belongs(number: Option) -> None:
    """LIST and STRUCTURED_REPLY with data are ERR_INVALID and change nothing."""
    handshake = negotiating()
    ((_, kind, _why),) = ask(handshake, number, b"x")
    assert kind == Reply.ERR_INVALID
    assert not handshake.structured


def test_structured_replies_bring_df() -> None:
    """Once structured replies are settled, the export also takes the don't-fragment flag."""
    handshake = negotiating()
    assert ask(handshake, Option.STRUCTURED_REPLY) == [(Option.STRUCTURED_REPLY, Reply.ACK, b"")]
    first = ask(handshake, Option.GO, info_request(b""))[0]
    assert struct.unpack(">HQH", first[2])[2] == FLAGS | TransmissionFlags.SEND_DF
    assert handshake.structured


@pytest.mark.parametrize(
    "number", [4, Option.STARTTLS, Option.SET_META_CONTEXT, Option.LIST_META_CONTEXT, 11, 2**32 - 1]
)
def test_other_options_are_unsupported(number: int) -> None:
    """An option that we do not have is ERR_UNSUP, its data is skipped, and the next one is understood."""
    handshake = negotiating()
    ((echoed, kind, _why),) = ask(handshake, number, b"some data")
    assert (echoed, kind) == (number, Reply.ERR_UNSUP)
    assert ask(handshake, Option.LIST)[-1][1] == Reply.ACK


def test_abort() -> None:
    """ABORT is acknowledged, and what follows is not read."""
    handshake = negotiating()
    used, reply = handshake.feed(option(Option.ABORT) + b"garbage")
    assert used == 16
    assert replies(reply) == [(Option.ABORT, Reply.ACK, b"")]
    assert handshake.stage is Stage.ENDED


@pytest.mark.parametrize(("client_flags", "padding"), [(1, 124), (3, 0), (0, 124), (2, 0)])
def test_export_name(client_flags: int, padding: int) -> None:
    """EXPORT_NAME answers size and flags, and 124 zeroes for a client that did not say it needs none."""
    handshake = Handshake(OFFER)
    message = struct.pack(">I", client_flags) + option(Option.EXPORT_NAME, b"vbd-51712")
    assert handshake.feed(message) == (len(message), struct.pack(">QH", 1 << 20, FLAGS) + bytes(padding))
    assert handshake.stage is Stage.TRANSMISSION


def test_requests_after_go_are_left_alone() -> None:
    """What follows the last option in the same packet is not the handshake's."""
    message = option(Option.GO, info_request(b""))
    used, _reply = negotiating().feed(message + b"request")
    assert used == len(message)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (struct.pack(">I", 4), "client flags"),
        (CLIENT_FLAGS + b"GET / HTTP/1.1\r\n", "IHAVEOPT"),
        (CLIENT_FLAGS + wire.OPTION.pack(wire.IHAVEOPT, Option.GO, OPTION_DATA_MAX + 1), "bytes of data"),
        (CLIENT_FLAGS + option(Option.EXPORT_NAME, b"xvdb"), "xvdb"),
        (CLIENT_FLAGS + option(Option.LIST) * (OPTIONS_MAX + 1), "options"),
    ],
)
def test_breaches_end_the_session(message: bytes, why: str) -> None:
    """What has no error reply ends the session with a sentence for the log."""
    with pytest.raises(WireError, match=why):
        Handshake(OFFER).feed(message)


def test_an_incomplete_option_waits() -> None:
    """Nothing is answered before the whole option is there."""
    handshake = negotiating()
    message = option(Option.GO, info_request(b"vbd-51712"))
    for cut in range(len(message)):
        assert handshake.feed(message[:cut]) == (0, b"")
    assert handshake.feed(message)[0] == len(message)
