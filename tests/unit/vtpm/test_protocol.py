"""The vtpm page's layout and the heads of TPM messages."""

from __future__ import annotations

import pytest

from xenbusd.errors import OtherendError
from xenbusd.ids import PAGE_SIZE
from xenbusd_vtpm.protocol import (
    MESSAGE_MAX,
    TPM_1_2,
    TPM_2_0,
    Head,
    PageState,
    is_whole,
    leaves_state_alone,
    pieces,
    read_head,
)

EXTEND = bytes.fromhex("80020000000a00000182")
PCR_READ = bytes.fromhex("80010000000a0000017e")


def page(head: str) -> memoryview:
    """A page that begins with some bytes."""
    return memoryview(bytearray.fromhex(head).ljust(PAGE_SIZE, b"\0"))


def test_head_as_linux_writes_it() -> None:
    """Length, state, locality, padding, number of extra pages, then their grant references."""
    assert read_head(page("0c000000 01 02 00 00")) == Head(12, PageState.SUBMIT, 2, ())
    assert read_head(page("00100000 02 00 00 02 08000000 ffffffff")) == Head(4096, 2, 0, (8, 0xFFFFFFFF))


def test_room_is_all_pages_without_the_head() -> None:
    """The head has 8 + 4n bytes, as in Linux and mini-os; the comment in Xen's header is wrong."""
    assert (Head(0, 0, 0, ()).data_at, Head(0, 0, 0, ()).room) == (8, 4088)
    assert (Head(0, 0, 0, (1, 2)).data_at, Head(0, 0, 0, (1, 2)).room) == (16, 4080 + 8192)


@pytest.mark.parametrize("head", ["f90f0000 01 00 00 00", "ffffffff 01 00 00 ff", "00000000 04 00 00 00"])
def test_what_cannot_be(head: str) -> None:
    """A length beyond the pages' room, and a state that does not exist, are the other end's fault."""
    with pytest.raises(OtherendError):
        read_head(page(head))


@pytest.mark.parametrize("extra", [0, 1, 3, 255])
@pytest.mark.parametrize("length", [0, 1, 4080, 4088])
def test_pieces_cover_a_message_once(extra: int, length: int) -> None:
    """The pieces are consecutive in the message; the first one follows the head in its page."""
    head = Head(length, 0, 0, tuple(range(extra)))
    layout = pieces(head, length)
    assert [piece.start for piece in layout] == [
        sum(before.length for before in layout[:number]) for number in range(len(layout))
    ]
    assert sum(piece.length for piece in layout) == length
    assert [piece.page for piece in layout] == list(range(len(layout)))
    assert all(piece.offset + piece.length <= PAGE_SIZE for piece in layout)
    assert [piece.offset for piece in layout] == ([head.data_at] + [0] * extra)[: len(layout)]


def test_whole_messages() -> None:
    """A message is whole if it has a head that tells its own length."""
    assert is_whole(PCR_READ)
    assert not is_whole(PCR_READ[:9])
    assert not is_whole(PCR_READ + b"\0")
    longest = PCR_READ[:2] + MESSAGE_MAX.to_bytes(4, "big") + bytes(MESSAGE_MAX - 6)
    assert is_whole(longest)
    assert not is_whole(longest[:2] + (MESSAGE_MAX + 1).to_bytes(4, "big") + longest[6:] + b"\0")


def test_refusals_are_responses() -> None:
    """Refusals have each version's own tag and result."""
    assert TPM_2_0.refusal(TPM_2_0.failure).hex() == "80010000000a00000101"
    assert TPM_1_2.refusal(TPM_1_2.failure).hex() == "00c40000000a00000009"


def test_only_reading_needs_no_store() -> None:
    """A command that changes something is followed by a store; so is one with a session, whose nonces change."""
    assert leaves_state_alone(PCR_READ)
    assert not leaves_state_alone(EXTEND)
    assert not leaves_state_alone(b"\x80\x02" + PCR_READ[2:])
    assert not leaves_state_alone(bytes.fromhex("80010000000c0000017b0008"))  # GetRandom
