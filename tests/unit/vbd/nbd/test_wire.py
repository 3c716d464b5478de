"""The NBD wire: layouts byte by byte, and which requests may reach the disk."""

from __future__ import annotations

import errno

import pytest

from xenbusd_vbd.nbd import wire
from xenbusd_vbd.nbd.wire import Offer, Rules, TransmissionFlags

MIB = 1 << 20
ALL = (
    TransmissionFlags.HAS_FLAGS
    | TransmissionFlags.SEND_FLUSH
    | TransmissionFlags.SEND_FUA
    | TransmissionFlags.SEND_TRIM
    | TransmissionFlags.CAN_MULTI_CONN
)


def rules(flags: int = ALL, size_bytes: int = 64 * MIB) -> Rules:
    """The rules for a disk that can do everything, or what `flags` says."""
    offer = Offer("vbd-51712", "a disk", size_bytes, TransmissionFlags(flags), 512, 4096, wire.REQUEST_DATA_MAX)
    return Rules.of(offer, flags)


def test_layouts_have_the_sizes_of_the_protocol_document() -> None:
    """Each header is as long on the wire as doc/proto.md lays it out."""
    assert (wire.GREETING.size, wire.OPTION.size, wire.OPTION_REPLY.size) == (18, 16, 20)
    assert (wire.REQUEST.size, wire.SIMPLE_REPLY.size, wire.CHUNK.size) == (28, 16, 20)
    assert (wire.DATA_CHUNK.size, wire.ERROR_CHUNK.size) == (28, 26)
    assert (wire.INFO_EXPORT_REPLY.size, wire.INFO_BLOCK_SIZE_REPLY.size) == (12, 14)


def test_simple_reply_bytes() -> None:
    """A simple reply is magic, error, handle."""
    assert wire.simple_reply(0x0102030405060708, 5).hex() == "67446698000000050102030405060708"


def test_data_chunk_bytes() -> None:
    """A data chunk is marked as the last, and its length counts the offset."""
    head = wire.data_chunk_head(9, 4096, 512)
    assert head.hex() == "668e33ef000100010000000000000009000002080000000000001000"


def test_none_chunk_bytes() -> None:
    """A read of nothing is answered by a chunk of type NONE, marked as the last."""
    assert wire.none_chunk(9).hex() == "668e33ef00010000000000000000000900000000"


def test_error_chunk_bytes() -> None:
    """An error chunk carries the number and a sentence, and is marked as the last."""
    chunk = wire.error_chunk(9, errno.EINVAL, "no")
    assert chunk.hex() == "668e33ef00018001000000000000000900000008000000160002" + b"no".hex()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EPERM, errno.EPERM),
        (errno.EROFS, errno.EPERM),
        (errno.EDQUOT, errno.ENOSPC),
        (errno.EFBIG, errno.ENOSPC),
        (errno.ESHUTDOWN, errno.ESHUTDOWN),
        (errno.EOPNOTSUPP, errno.ENOTSUP),
        (errno.EBADF, errno.EIO),
        (9999, errno.EIO),
    ],
)
def test_wire_error_keeps_to_the_errors_that_nbd_has(code: int, expected: int) -> None:
    """An errno that NBD does not know becomes the nearest one that it does."""
    assert wire.wire_error(code) == expected


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length"),
    [
        (wire.Command.READ, 0, 0, 512),
        (wire.Command.READ, 0, 64 * MIB - 512, 512),
        (wire.Command.READ, wire.FLAG_FUA, 0, 32 * MIB),
        (wire.Command.READ, 0, 64 * MIB, 0),
        (wire.Command.WRITE, wire.FLAG_FUA, 512, 32 * MIB),
        (wire.Command.TRIM, 0, 0, 64 * MIB),
        (wire.Command.TRIM, wire.FLAG_FUA, 512, 512),
        (wire.Command.FLUSH, 0, 0, 0),
    ],
)
def test_good_requests_reach_the_disk(command: int, flags: int, offset: int, length: int) -> None:
    """Nothing is refused that the announced limits allow; only READ and WRITE have a largest size."""
    assert rules().refusal(command, flags, offset, length) is None


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "code"),
    [
        (wire.Command.READ, 0, 64 * MIB, 512, errno.EINVAL),
        (wire.Command.READ, 0, 2**64 - 512, 1024, errno.EINVAL),
        (wire.Command.WRITE, 0, 64 * MIB - 512, 1024, errno.ENOSPC),
        (wire.Command.TRIM, 0, 64 * MIB, 512, errno.EINVAL),
        (wire.Command.READ, 0, 1, 512, errno.EINVAL),
        (wire.Command.READ, 0, 0, 511, errno.EINVAL),
        (wire.Command.WRITE, 0, 256, 512, errno.EINVAL),
        (wire.Command.TRIM, 0, 0, 100, errno.EINVAL),
        (wire.Command.READ, 0, 0, 32 * MIB + 512, errno.EINVAL),
        (wire.Command.WRITE, 0, 0, 32 * MIB + 512, errno.EINVAL),
        (wire.Command.FLUSH, 0, 512, 0, errno.EINVAL),
        (wire.Command.FLUSH, 0, 0, 512, errno.EINVAL),
        (wire.Command.READ, wire.FLAG_DF, 0, 512, errno.EINVAL),
        (wire.Command.WRITE, 0x8000, 0, 512, errno.EINVAL),
        (5, 0, 0, 512, errno.EINVAL),
        (6, 0, 0, 512, errno.EINVAL),
        (7, 0, 0, 512, errno.EINVAL),
        (0xFFFF, 0, 0, 0, errno.EINVAL),
    ],
)
def test_bad_requests_are_refused(command: int, flags: int, offset: int, length: int, code: int) -> None:
    """A request outside the disk, unaligned, too large, flagged unknown or unknown itself gets NBD's error for it."""
    refused = rules().refusal(command, flags, offset, length)
    assert refused is not None
    assert refused[0] == code
    assert refused[1]


def test_df_goes_with_structured_reads_only() -> None:
    """The don't-fragment flag is accepted on READ once structured replies are settled, on nothing else."""
    structured = rules(ALL | TransmissionFlags.SEND_DF)
    assert structured.refusal(wire.Command.READ, wire.FLAG_DF | wire.FLAG_FUA, 0, 512) is None
    assert structured.refusal(wire.Command.WRITE, wire.FLAG_DF, 0, 512) is not None


@pytest.mark.parametrize("command", [wire.Command.WRITE, wire.Command.TRIM])
def test_read_only_disks_are_not_written(command: int) -> None:
    """A write or trim of a read-only disk is EPERM, wherever it points."""
    refused = rules(TransmissionFlags.HAS_FLAGS | TransmissionFlags.READ_ONLY).refusal(command, 0, 1, 7)
    assert refused is not None
    assert refused[0] == errno.EPERM


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (wire.Command.FLUSH, 0),
        (wire.Command.TRIM, 0),
        (wire.Command.WRITE, wire.FLAG_FUA),
        (wire.Command.READ, wire.FLAG_FUA),
    ],
)
def test_what_was_not_announced_is_refused(command: int, flags: int) -> None:
    """Flush, trim and FUA are EINVAL on a disk that announced none of them."""
    length = 0 if command == wire.Command.FLUSH else 512
    refused = rules(TransmissionFlags.HAS_FLAGS).refusal(command, flags, 0, length)
    assert refused is not None
    assert refused[0] == errno.EINVAL
