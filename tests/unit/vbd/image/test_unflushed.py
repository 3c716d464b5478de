"""Copies of writes that a flush has not covered yet."""

from __future__ import annotations

from xenbusd_vbd.image.unflushed import UnflushedWrites


def test_a_flush_covers_what_was_answered_before_it() -> None:
    """Writes answered between the sending of the flush and its answer are kept."""
    kept = UnflushedWrites()
    for text in (b"a", b"bb"):
        kept.keep(bytearray(text))
    mark = kept.mark()
    kept.keep(bytearray(b"ccc"))
    assert (len(kept), kept.bytes) == (3, 6)
    kept.drop(mark)
    assert (list(kept), kept.bytes) == ([b"ccc"], 3)
    kept.drop(mark)
    assert list(kept) == [b"ccc"]
    kept.drop(kept.mark())
    assert (len(kept), kept.bytes) == (0, 0)


def test_a_mark_of_the_future_covers_no_more_than_there_is() -> None:
    """Marks go on counting over what was dropped."""
    kept = UnflushedWrites()
    kept.keep(bytearray(b"a"))
    kept.drop(99)
    kept.keep(bytearray(b"b"))
    assert kept.mark() == 2
    kept.drop(1)
    assert list(kept) == [b"b"]
