"""The wire: packets, paths, permissions, error names."""

from __future__ import annotations

import errno
import struct

import pytest
from pyxs._internal import Op as PyxsOp
from pyxs._internal import Packet as PyxsPacket

from xenbusd.store import wire
from xenbusd.store.wire import InvalidPath, InvalidPayload, InvalidPermission, Op

XS_WIRE_H = {
    "CONTROL": 0,
    "DIRECTORY": 1,
    "READ": 2,
    "GET_PERMS": 3,
    "WATCH": 4,
    "UNWATCH": 5,
    "TRANSACTION_START": 6,
    "TRANSACTION_END": 7,
    "INTRODUCE": 8,
    "RELEASE": 9,
    "GET_DOMAIN_PATH": 10,
    "WRITE": 11,
    "MKDIR": 12,
    "RM": 13,
    "SET_PERMS": 14,
    "WATCH_EVENT": 15,
    "ERROR": 16,
    "IS_DOMAIN_INTRODUCED": 17,
    "RESUME": 18,
    "SET_TARGET": 19,
    "RESET_WATCHES": 21,
    "DIRECTORY_PART": 22,
}
"""enum xsd_sockmsg_type, typed from the header; 20 was RESTRICT."""


def test_operations_have_the_numbers_of_the_header() -> None:
    """Ours are the header's, and where pyxs knows the operation, pyxs's."""
    assert {op.name: op.value for op in Op} == XS_WIRE_H
    for name, number in XS_WIRE_H.items():
        assert getattr(PyxsOp, "DEBUG" if name == "CONTROL" else name, number) == number


def test_a_packet_is_four_words_and_a_payload() -> None:
    """type, req_id, tx_id, len, in the machine's own byte order."""
    packet = wire.pack(Op.WRITE, 0xFFFFFFFF, 7, b"a\0b")
    assert packet == struct.pack("=IIII", 11, 0xFFFFFFFF, 7, 3) + b"a\0b"
    assert wire.HEADER.size == 16


def test_a_packet_is_what_pyxs_sends() -> None:
    """Byte for byte the same frame."""
    theirs = PyxsPacket(PyxsOp.READ, b"/a\0", 5, 3)
    assert wire.pack(Op.READ, 5, 3, b"/a\0") == wire.HEADER.pack(*theirs[:4]) + b"/a\0"


def test_a_payload_of_4096_bytes_is_packed_and_one_more_is_refused() -> None:
    """XENSTORE_PAYLOAD_MAX is the last that fits."""
    assert len(wire.pack(Op.WRITE, 1, 0, bytes(4096))) == 4112
    with pytest.raises(InvalidPayload, match="4097"):
        wire.pack(Op.WRITE, 1, 0, bytes(4097))


@pytest.mark.parametrize("path", ["/", "/local/domain/0", "relative/path", "@introduceDomain", "/a-b_c@d/9"])
def test_a_good_path_goes_out_as_it_is(path: str) -> None:
    """Letters, digits and -/_@."""
    assert wire.check_path(path) == path.encode()


@pytest.mark.parametrize("path", ["", "/a/", "//a", "/a//b", "/a b", "/a.b", "/ä", "/a\0b", "/a\n", "/a\0", "/日本"])
def test_a_bad_path_is_refused_with_what_is_allowed(path: str) -> None:
    """The sentence names the path and the rule."""
    with pytest.raises(InvalidPath, match="letters, digits"):
        wire.check_path(path)


@pytest.mark.parametrize(("prefix", "most"), [("/", 3072), ("", 2048)])
def test_the_longest_path_passes_and_one_byte_more_does_not(prefix: str, most: int) -> None:
    """3072 bytes absolute, 2048 relative."""
    assert len(wire.check_path(prefix + "a" * (most - len(prefix)))) == most
    with pytest.raises(InvalidPath, match=f"at most {most} bytes"):
        wire.check_path(prefix + "a" * (most - len(prefix) + 1))


def test_permissions_go_out_in_order() -> None:
    """The first names the owner."""
    assert wire.check_perms(["n3", "r0", "b12", "w7"]) == [b"n3", b"r0", b"b12", b"w7"]


@pytest.mark.parametrize("perms", [[], ["x3"], ["n"], ["3"], ["n3", "rw4"], ["né"], ["n3\n"], ["n3\0"]])
def test_a_bad_permission_is_refused_with_an_example(perms: list[str]) -> None:
    """The sentence shows what one looks like."""
    with pytest.raises(InvalidPermission, match="n3 or r0"):
        wire.check_perms(perms)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EAGAIN, errno.E2BIG, errno.EEXIST, errno.EISDIR])
def test_error_names_come_back_as_the_same_errno(code: int) -> None:
    """Name and number are one."""
    assert wire.errno_number(wire.errno_name(code) + b"\0") == code


@pytest.mark.parametrize("name", [b"", b"\0", b"ENOSUCH\0", b"errorcode\0", b"\xff\xfe", b"__name__\0"])
def test_an_unknown_error_name_is_an_input_output_error(name: bytes) -> None:
    """Also one that happens to be a name of Python's errno module."""
    assert wire.errno_number(name) == errno.EIO
