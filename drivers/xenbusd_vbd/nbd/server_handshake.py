"""The NBD handshake, fixed newstyle, from the server's side. Pure: no I/O here.

Source: doc/proto.md of the NetworkBlockDevice/nbd repository, "Handshake", "Option types", "Option reply types".
Decision: D25.
"""

from __future__ import annotations

import struct
from enum import Enum

from xenbusd_vbd.nbd.wire import (
    CLIENT_FLAGS,
    EXPORT_NAME_PADDING,
    EXPORT_NAME_REPLY,
    FIXED_NEWSTYLE,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE_REPLY,
    INFO_EXPORT_REPLY,
    INIT_PASSWD,
    NO_ZEROES,
    OPTION,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    Info,
    Offer,
    Option,
    Reply,
    TransmissionFlags,
    WireError,
)

OPTION_DATA_MAX = 16384
"""Most bytes of data with one option: a name of 4,096 ("Conventions") and all the information requests there are."""
OPTIONS_MAX = 64
"""Most options on one connection; real clients send fewer than ten."""


class Stage(Enum):
    """The state of a handshake."""

    NEGOTIATING = "negotiating"
    TRANSMISSION = "transmission"
    ENDED = "ended"


class Handshake:
    """One client's fixed newstyle handshake.

    Send `greeting`, then feed what arrives until `stage` is no longer NEGOTIATING.
    """

    def __init__(self, offer: Offer) -> None:
        self.stage = Stage.NEGOTIATING
        self.structured = False
        """Whether the client has asked for structured replies to READ."""
        self._offer = offer
        self._names = {b"", offer.name.encode()}
        self._client_flags: int | None = None
        self._options = 0

    greeting = GREETING.pack(INIT_PASSWD, IHAVEOPT, FIXED_NEWSTYLE | NO_ZEROES)

    @property
    def flags(self) -> TransmissionFlags:
        """The transmission flags that hold on this connection as negotiated so far."""
        return self._offer.flags | TransmissionFlags.SEND_DF if self.structured else self._offer.flags

    def feed(self, data: bytes | bytearray | memoryview) -> tuple[int, bytes]:
        """Take as many whole messages as `data` begins with.

        Returns:
            How many bytes of `data` were used, and the bytes to send. Bytes behind the last message of the handshake
            are left: they are the first request.

        Raises:
            WireError: the session has to end without a reply.
        """
        used, replies = 0, []
        if self._client_flags is None:
            if len(data) < CLIENT_FLAGS.size:
                return 0, b""
            (flags,) = CLIENT_FLAGS.unpack_from(data)
            if flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
                raise WireError(f"client flags {flags:#x} hold bits that we did not offer")
            self._client_flags = flags
            used = CLIENT_FLAGS.size
        while self.stage is Stage.NEGOTIATING and len(data) - used >= OPTION.size:
            magic, option, length = OPTION.unpack_from(data, used)
            if magic != IHAVEOPT:
                raise WireError(f"an option begins with {magic:#x}, not with IHAVEOPT")
            if length > OPTION_DATA_MAX:
                raise WireError(f"option {option} comes with {length} bytes of data; {OPTION_DATA_MAX} are the most")
            end = used + OPTION.size + length
            if len(data) < end:
                break
            self._options += 1
            if self._options > OPTIONS_MAX:
                raise WireError(f"more than {OPTIONS_MAX} options and no end")
            replies.append(self._answer(option, bytes(data[used + OPTION.size : end])))
            used = end
        return used, b"".join(replies)

    def _answer(self, option: int, data: bytes) -> bytes:
        if option == Option.EXPORT_NAME:
            return self._export_name(data)
        if option == Option.ABORT:
            self.stage = Stage.ENDED
            return option_reply(option, Reply.ACK)
        if option in (Option.INFO, Option.GO):
            return self._info(option, data)
        if option in (Option.LIST, Option.STRUCTURED_REPLY) and data:
            return option_reply(option, Reply.ERR_INVALID, b"this option takes no data")
        if option == Option.LIST:
            name = self._offer.name.encode()
            server = struct.pack(">I", len(name)) + name + self._offer.description.encode()
            return option_reply(option, Reply.SERVER, server) + option_reply(option, Reply.ACK)
        if option == Option.STRUCTURED_REPLY:
            self.structured = True
            return option_reply(option, Reply.ACK)
        return option_reply(option, Reply.ERR_UNSUP, b"this server has no such option")

    def _export_name(self, name: bytes) -> bytes:
        if name not in self._names:
            raise WireError(f"the client asks for the export {name[:128]!r}; there is only {self._offer.name!r}")
        self.stage = Stage.TRANSMISSION
        reply = EXPORT_NAME_REPLY.pack(self._offer.size_bytes, self.flags)
        return reply if (self._client_flags or 0) & NO_ZEROES else reply + EXPORT_NAME_PADDING

    def _info(self, option: int, data: bytes) -> bytes:
        try:
            name, wanted = parse_info_request(data)
        except ValueError as error:
            return option_reply(option, Reply.ERR_INVALID, str(error).encode())
        if name not in self._names:
            there_is = f"no such export here; there is only {self._offer.name!r}"
            return option_reply(option, Reply.ERR_UNKNOWN, there_is.encode())
        offer = self._offer
        infos = [
            INFO_EXPORT_REPLY.pack(Info.EXPORT, offer.size_bytes, self.flags),
            INFO_BLOCK_SIZE_REPLY.pack(Info.BLOCK_SIZE, offer.minimum, offer.preferred, offer.maximum),
        ]
        if Info.NAME in wanted:
            infos.append(struct.pack(">H", Info.NAME) + offer.name.encode())
        if Info.DESCRIPTION in wanted:
            infos.append(struct.pack(">H", Info.DESCRIPTION) + offer.description.encode())
        if option == Option.GO:
            self.stage = Stage.TRANSMISSION
        return b"".join(option_reply(option, Reply.INFO, info) for info in infos) + option_reply(option, Reply.ACK)


def option_reply(option: int, kind: Reply, data: bytes = b"") -> bytes:
    """Answer an option; an error's data is a sentence for the user."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def parse_info_request(data: bytes) -> tuple[bytes, list[int]]:
    """Return the export name and the wanted kinds of information of an INFO or GO option.

    Raises:
        ValueError: the lengths inside do not add up.
    Source: "Option types", NBD_OPT_INFO and NBD_OPT_GO: u32 length of name, name, u16 count, count times u16.
    """
    if len(data) < 6:
        raise ValueError("the option is too short for a name and a count")
    (name_length,) = struct.unpack_from(">I", data)
    if name_length > len(data) - 6:
        raise ValueError("the name is longer than the option")
    (count,) = struct.unpack_from(">H", data, 4 + name_length)
    if len(data) != 6 + name_length + 2 * count:
        raise ValueError("the option is not as long as its count of information requests says")
    return data[4 : 4 + name_length], list(struct.unpack_from(f">{count}H", data, 6 + name_length))
