"""Grants on both kinds of host: what a driver may rely on.

The real host is tested in one domain, that grants to itself, as Xen allows.
"""

from __future__ import annotations

import errno

import pytest

from tests.doubles.two_hosts import Two
from xenbusd.errors import GrantError, LocalProtocolError
from xenbusd.host.interface import Copy
from xenbusd.ids import PAGE_SIZE, Gref


def test_both_ends_see_each_others_bytes(two: Two) -> None:
    """What one writes into a shared page the other reads, both ways; a new page is zeroed."""
    share = two.front.grants.share(two.back_domid, 1)
    mapping = two.back.grants.map(two.front_domid, share.grefs)
    assert bytes(mapping.view) == bytes(PAGE_SIZE)
    share.view[0:5] = b"hello"
    mapping.view[4091:4096] = b"there"
    assert bytes(mapping.view[0:5]) == b"hello"
    assert bytes(share.view[4091:4096]) == b"there"
    mapping.unmap()
    share.unshare()


def test_views_are_plain_bytes(two: Two) -> None:
    """A view is contiguous, of format B, as long as its pages, and can be cast to words."""
    share = two.front.grants.share(two.back_domid, 2)
    mapping = two.back.grants.map(two.front_domid, share.grefs)
    for view in (share.view, mapping.view):
        assert (view.format, view.nbytes, view.contiguous, view.readonly) == ("B", 2 * PAGE_SIZE, True, False)
        with view[4:8].cast("I") as word:
            word[0] = 0x01020304
    assert bytes(mapping.view[4:8]) == (0x01020304).to_bytes(4, "little")
    mapping.unmap()
    share.unshare()


def test_pages_are_mapped_in_the_order_of_their_references(two: Two) -> None:
    """Pages of one share, or of several, in any order, become one range in the order that was asked for."""
    first, second = (two.front.grants.share(two.back_domid, 3) for _ in range(2))
    for number in range(3):
        first.view[number * PAGE_SIZE] = 10 + number
        second.view[number * PAGE_SIZE] = 20 + number
    asked = (second.grefs[2], *first.grefs, second.grefs[0], second.grefs[1], first.grefs[0])
    mapping = two.back.grants.map(two.front_domid, asked)
    assert bytes(mapping.view[::PAGE_SIZE]) == bytes([22, 10, 11, 12, 20, 21, 10])
    mapping.unmap()
    first.unshare()
    second.unshare()


def test_many_pages_are_one_range(two: Two) -> None:
    """More pages than fit into one message of the simulated host are one range all the same."""
    shares = [two.front.grants.share(two.back_domid, 1) for _ in range(300)]
    for number, share in enumerate(shares):
        share.view[0:2] = number.to_bytes(2, "little")
    mapping = two.back.grants.map(two.front_domid, [share.grefs[0] for share in shares])
    seen = [int.from_bytes(mapping.view[at : at + 2], "little") for at in range(0, 300 * PAGE_SIZE, PAGE_SIZE)]
    assert seen == list(range(300))
    mapping.unmap()
    for share in shares:
        share.unshare()


def test_a_page_may_be_mapped_twice(two: Two) -> None:
    """Two mappings of a page show the same bytes, and end independently."""
    share = two.front.grants.share(two.back_domid, 1)
    one, other = (two.back.grants.map(two.front_domid, share.grefs) for _ in range(2))
    one.view[7] = 7
    one.unmap()
    assert other.view[7] == 7
    other.unmap()
    share.unshare()


def test_read_only_map_cannot_be_written(two: Two) -> None:
    """A read-only view refuses a write, and still sees what the other end writes."""
    share = two.front.grants.share(two.back_domid, 1)
    mapping = two.back.grants.map(two.front_domid, share.grefs, writable=False)
    with pytest.raises(TypeError):
        mapping.view[0] = 1
    share.view[0] = 9
    assert mapping.view[0] == 9
    mapping.unmap()
    share.unshare()


def test_read_only_grant_cannot_be_mapped_writable(two: Two) -> None:
    """A page granted for reading can be mapped read-only, and not writable."""
    share = two.front.grants.share(two.back_domid, 1, writable=False)
    with pytest.raises(GrantError):
        two.back.grants.map(two.front_domid, share.grefs)
    share.view[3] = 3
    mapping = two.back.grants.map(two.front_domid, share.grefs, writable=False)
    assert mapping.view[3] == 3
    mapping.unmap()
    share.unshare()


def test_map_of_a_bad_reference_names_it_and_maps_nothing(two: Two) -> None:
    """T66: one reference that was never granted refuses the whole map, by domain and reference."""
    share = two.front.grants.share(two.back_domid, 1)
    bad = Gref(30001)
    with pytest.raises(GrantError, match=rf"xengnttab_map_domain_grant_refs\(domain {two.front_domid}.*30001"):
        two.back.grants.map(two.front_domid, [share.grefs[0], bad])
    two.back.grants.map(two.front_domid, share.grefs).unmap()
    share.unshare()


@pytest.mark.parametrize("gref", [-1, 1 << 32])
def test_number_that_is_no_reference_is_refused(two: Two, gref: int) -> None:
    """A number outside of u32 is an error, not another reference."""
    with pytest.raises(GrantError) as caught:
        two.back.grants.map(two.front_domid, [Gref(gref)])
    assert caught.value.errno == errno.EINVAL


def test_unshared_page_cannot_be_mapped_any_more(two: Two) -> None:
    """After unshare the reference is dead."""
    share = two.front.grants.share(two.back_domid, 1)
    share.unshare()
    share.unshare()
    with pytest.raises(GrantError):
        two.back.grants.map(two.front_domid, share.grefs)


def test_unmap_under_a_living_slice_is_refused(two: Two) -> None:
    """Unmapping under a slice is our bug: an error instead of a crash, and the page stays until the slice is gone."""
    share = two.front.grants.share(two.back_domid, 1)
    mapping = two.back.grants.map(two.front_domid, share.grefs)
    kept = mapping.view[8:16]
    with pytest.raises(LocalProtocolError, match="still in use"):
        mapping.unmap()
    share.view[8] = 42
    assert kept[0] == 42
    assert mapping.view[8] == 42
    kept.release()
    mapping.unmap()
    mapping.unmap()
    share.unshare()


def test_unshare_under_a_living_slice_is_refused(two: Two) -> None:
    """The same for our own pages: the grant stands until the slice is gone."""
    share = two.front.grants.share(two.back_domid, 1)
    kept = share.view[0:1].cast("B")
    with pytest.raises(LocalProtocolError, match="still in use"):
        share.unshare()
    two.back.grants.map(two.front_domid, share.grefs).unmap()
    kept.release()
    share.unshare()


def test_copy_goes_both_ways(two: Two) -> None:
    """A batch copies out of their page and into it, each segment at its offset."""
    share = two.front.grants.share(two.back_domid, 2)
    share.view[100:105] = b"theirs"[:5]
    local = bytearray(8)
    statuses = two.back.grants.copy(
        [
            Copy(False, two.front_domid, share.grefs[0], 100, memoryview(local)[2:7]),
            Copy(True, two.front_domid, share.grefs[1], 4092, memoryview(b"ours")),
        ]
    )
    assert statuses == [0, 0]
    assert bytes(local) == b"\0\0their\0"
    assert bytes(share.view[2 * PAGE_SIZE - 4 :]) == b"ours"
    share.unshare()


def test_one_bad_segment_leaves_the_others_alone(two: Two) -> None:
    """Each segment has its own status: a bad reference and a page that ends too early harm no good one (XSA-361)."""
    share = two.front.grants.share(two.back_domid, 1)
    share.view[0:4] = b"good"
    got = [bytearray(4) for _ in range(4)]
    places = [(share.grefs[0], 0), (Gref(30001), 0), (share.grefs[0], 4093), (share.grefs[0], 0)]
    statuses = two.back.grants.copy(
        [
            Copy(False, two.front_domid, gref, offset, memoryview(local))
            for (gref, offset), local in zip(places, got, strict=True)
        ]
    )
    assert [bool(status) for status in statuses] == [False, True, True, False]
    assert min(statuses) == 0
    assert [bytes(local) for local in got] == [b"good", bytes(4), bytes(4), b"good"]
    share.unshare()


def test_copy_into_a_read_only_grant_is_refused(two: Two) -> None:
    """A page granted for reading can be copied from, not to."""
    share = two.front.grants.share(two.back_domid, 1, writable=False)
    local = bytearray(1)
    into, out_of = two.back.grants.copy(
        [
            Copy(True, two.front_domid, share.grefs[0], 0, memoryview(b"x")),
            Copy(False, two.front_domid, share.grefs[0], 0, memoryview(local)),
        ]
    )
    assert into > 0
    assert out_of == 0
    assert share.view[0] == 0
    share.unshare()


def test_copy_into_our_own_constant_is_our_bug(two: Two) -> None:
    """A batch that would write into read-only memory of ours is refused as a whole."""
    share = two.front.grants.share(two.back_domid, 1)
    with pytest.raises(GrantError, match="xengnttab_grant_copy"):
        two.back.grants.copy([Copy(False, two.front_domid, share.grefs[0], 0, memoryview(b"const"))])
    share.unshare()
