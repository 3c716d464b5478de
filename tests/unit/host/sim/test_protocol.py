"""The messages between a process and the broker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenbusd.host.sim.protocol import (
    BATCH,
    DESCRIPTORS_MAX,
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    U32,
    Holdings,
    Verb,
    pack,
    parse_reply,
    parse_request,
    rows,
)

SHORTEST = {
    Verb.HELLO: (1,),
    Verb.STORE: (),
    Verb.SHARE: (0, 1, 1),
    Verb.UNSHARE: (8,),
    Verb.MAP: (3, 1, 8),
    Verb.UNMAP: (1,),
    Verb.COPY: (3, 8, 0),
    Verb.ALLOC_UNBOUND: (0,),
    Verb.BIND_INTERDOMAIN: (3, 1),
    Verb.UNBIND: (1,),
    Verb.CENSUS: (),
}


@pytest.mark.parametrize("verb", Verb)
def test_request_comes_back_as_it_was_sent(verb: Verb) -> None:
    """Every verb survives the way there."""
    assert parse_request(pack((verb, *SHORTEST[verb]))) == (verb, SHORTEST[verb])


@pytest.mark.parametrize("verb", Verb)
def test_request_with_one_word_too_few_or_too_many_is_refused(verb: Verb) -> None:
    """The number of arguments is checked, so that what looks them up need not."""
    if SHORTEST[verb]:
        with pytest.raises(ValueError, match="argument"):
            parse_request(pack((verb, *SHORTEST[verb][:-1])))
    if verb is not Verb.MAP:
        with pytest.raises(ValueError, match="argument"):
            parse_request(pack((verb, *SHORTEST[verb], 0)))


@pytest.mark.parametrize("verb", [Verb.MAP, Verb.COPY])
def test_longest_request_fits(verb: Verb) -> None:
    """A full batch is accepted and fits into the broker's buffer; one more is refused."""
    words = (3, 1, *range(BATCH)) if verb is Verb.MAP else (3, 8, 0) * BATCH
    data = pack((verb, *words))
    assert len(data) <= REQUEST_BYTES_MAX
    assert parse_request(data).words == words
    with pytest.raises(ValueError, match="argument"):
        parse_request(data + pack((1, 2, 3)))


def test_longest_reply_fits() -> None:
    """A full batch's answer fits into the client's buffer, and its descriptors into one message."""
    assert len(pack((0, *range(3 * BATCH)))) <= REPLY_BYTES_MAX
    assert BATCH < DESCRIPTORS_MAX


@pytest.mark.parametrize("data", [b"", b"\1", b"\1\0\0", pack((0,)), pack((12,)), pack((U32,))])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    """Nothing, half a word, and verbs that there are not."""
    with pytest.raises(ValueError, match=r"request|bytes|Verb"):
        parse_request(data)


@pytest.mark.parametrize("word", [-1, U32 + 1])
def test_what_is_no_u32_cannot_be_sent(word: int) -> None:
    """A number that does not fit is an error, not another number."""
    with pytest.raises(ValueError, match="numbers from 0"):
        pack((Verb.HELLO, word))


def test_reply_is_an_errno_and_words() -> None:
    """A reply comes apart into both; an empty one is none."""
    assert parse_reply(pack((13, 1, 2))) == (13, (1, 2))
    with pytest.raises(ValueError, match="empty"):
        parse_reply(b"")


def test_census_comes_in_rows() -> None:
    """The words of a census are one row of holdings after the other."""
    listed = [Holdings(0, 1, 2, 3, 4, 5), Holdings(7, 0, 0, 0, 0, 9)]
    assert list(rows(tuple(word for row in listed for word in row))) == listed


@given(st.binary(max_size=64))
def test_parsing_never_fails_in_another_way(data: bytes) -> None:
    """Whatever a hostile process sends is a request or a ValueError."""
    try:
        request = parse_request(data)
    except ValueError:
        return
    assert pack((request.verb, *request.words)) == data
