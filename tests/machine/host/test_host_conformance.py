"""One suite for both hosts: what a driver may rely on, whichever it runs on.

The real host is tested in one domain, that grants to itself, as Xen allows.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from xenbusd.errors import EventChannelError, GrantError, LocalProtocolError
from xenbusd.host.interface import Copy, Host
from xenbusd.host.real import RealHost
from xenbusd.host.sim.client import SimHost
from xenbusd.host.sim.thread import broker_in_thread
from xenbusd.ids import PAGE_SIZE, Domid, Gref, Port
from xenbusd.store.wire import HEADER, Op, pack


@dataclass
class Two:
    """Two processes' doors to one machine: one shares and opens ports, the other maps and binds."""

    front: Host
    back: Host
    front_domid: Domid
    back_domid: Domid


def ask(connection: socket.socket | int, request: bytes) -> bytes:
    """Send one packet to a store, and return the payload of the answer."""
    fd = connection if isinstance(connection, int) else connection.fileno()
    os.write(fd, request)
    select.select([fd], [], [])
    answer = os.read(fd, HEADER.size)
    length = HEADER.unpack(answer)[3]
    payload = b""
    while len(payload) < length:
        select.select([fd], [], [])
        payload += os.read(fd, length - len(payload))
    return payload


@pytest.fixture(params=["sim", "real"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Two]:
    """Both doors, on each kind of host that there is."""
    if request.param == "real":
        if not os.path.exists("/dev/xen/gntdev"):
            pytest.skip("not a Xen domain: /dev/xen/gntdev is missing")
        front, back = RealHost(), RealHost()
        store = front.store.open()
        domid = Domid(int(ask(store, pack(Op.READ, 0, 0, b"domid\0"))))
        os.close(store) if isinstance(store, int) else store.close()
        yield Two(front, back, domid, domid)
        front.close()
        back.close()
        return
    path = str(tmp_path / "host")
    with broker_in_thread(path):
        sim_front, sim_back = SimHost(path, Domid(3)), SimHost(path)
        yield Two(sim_front, sim_back, Domid(3), Domid(0))
        sim_front.close()
        sim_back.close()


@dataclass
class Channel:
    """Both ends of a bound event channel, with nothing pending."""

    front: Port
    back: Port


@pytest.fixture
def channel(two: Two) -> Channel:
    """Open at the front, bound at the back."""
    front = two.front.events.alloc_unbound(two.back_domid)
    back = two.back.events.bind_interdomain(two.front_domid, front)
    for events in (two.front.events, two.back.events):
        for port in events.pending():
            events.unmask(port)
    return Channel(front, back)


def readable(fd: int) -> bool:
    """Whether the event loop would wake up."""
    return bool(select.select([fd], [], [], 0)[0])


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
    """A page granted for reading is refused to who wants to write, and given to who does not."""
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


def test_new_binding_is_pending(two: Two) -> None:
    """Who binds finds its port pending, once, since a notification may have come before (T60)."""
    front = two.front.events.alloc_unbound(two.back_domid)
    back = two.back.events.bind_interdomain(two.front_domid, front)
    assert readable(two.back.events.fd)
    assert two.back.events.pending() == [back]
    two.back.events.unmask(back)
    assert two.back.events.pending() == []


def test_notify_wakes_exactly_the_other_end(two: Two, channel: Channel) -> None:
    """A notification makes the other end's port pending, and nobody else's."""
    stranger = two.back.events.alloc_unbound(two.front_domid)
    two.front.events.notify(channel.front)
    assert readable(two.back.events.fd)
    assert not readable(two.front.events.fd)
    assert two.back.events.pending() == [channel.back]
    two.back.events.notify(channel.back)
    assert two.front.events.pending() == [channel.front]
    two.back.events.unbind(stranger)


def test_pending_does_not_wait(two: Two, channel: Channel) -> None:
    """With nothing pending the answer is at once: nothing."""
    assert two.back.events.pending() == []
    assert not readable(two.back.events.fd)
    assert channel.front > 0


def test_port_is_masked_until_unmask(two: Two, channel: Channel) -> None:
    """A delivered port stays silent, and is delivered again at once if it was notified meanwhile (T61)."""
    two.front.events.notify(channel.front)
    assert two.back.events.pending() == [channel.back]
    two.front.events.notify(channel.front)
    two.front.events.notify(channel.front)
    assert not readable(two.back.events.fd)
    assert two.back.events.pending() == []
    two.back.events.unmask(channel.back)
    assert two.back.events.pending() == [channel.back]
    two.back.events.unmask(channel.back)
    assert two.back.events.pending() == []


def test_pending_takes_a_batch(two: Two) -> None:
    """All pending ports come in one call."""
    fronts = [two.front.events.alloc_unbound(two.back_domid) for _ in range(40)]
    backs = [two.back.events.bind_interdomain(two.front_domid, front) for front in fronts]
    assert sorted(two.back.events.pending()) == sorted(backs)


def test_port_can_be_bound_again_after_a_close(two: Two, channel: Channel) -> None:
    """When one end closes, the other goes back to unbound and can be bound again (T64)."""
    two.back.events.unbind(channel.back)
    two.back.events.unbind(channel.back)
    again = two.back.events.bind_interdomain(two.front_domid, channel.front)
    assert again in two.back.events.pending()
    two.back.events.unmask(again)
    two.front.events.notify(channel.front)
    assert two.back.events.pending() == [again]


def test_notify_to_an_unbound_end_is_silent(two: Two, channel: Channel) -> None:
    """Nobody there: no error, as in Xen; neither before the first bind nor after a close."""
    lonely = two.front.events.alloc_unbound(two.back_domid)
    two.front.events.notify(lonely)
    two.back.events.unbind(channel.back)
    two.front.events.notify(channel.front)
    assert two.front.events.pending() == []


def test_bound_port_cannot_be_bound_by_another(two: Two, channel: Channel) -> None:
    """A port has two ends and no more."""
    with pytest.raises(EventChannelError, match=rf"bind_interdomain\(domain {two.front_domid}, port {channel.front}\)"):
        two.back.events.bind_interdomain(two.front_domid, channel.front)


def test_port_that_is_not_there_cannot_be_bound(two: Two) -> None:
    """A number that the other end never opened is refused by call, domain and port."""
    with pytest.raises(EventChannelError, match=rf"bind_interdomain\(domain {two.front_domid}, port 9999\)"):
        two.back.events.bind_interdomain(two.front_domid, Port(9999))


def test_notify_of_a_port_that_is_not_ours_is_an_error(two: Two, channel: Channel) -> None:
    """A port that this process has not opened cannot be rung; unmasking it does nothing."""
    two.back.events.unbind(channel.back)
    with pytest.raises(EventChannelError, match=r"xenevtchn_notify\(port"):
        two.back.events.notify(channel.back)
    two.back.events.unmask(channel.back)


def test_store_opens_again_and_again(two: Two) -> None:
    """Each open is a connection of its own, in the right domain."""
    for host, domid in ((two.front, two.front_domid), (two.back, two.back_domid)):
        for _ in range(2):
            connection = host.store.open()
            assert ask(connection, pack(Op.READ, 1, 0, b"domid\0")) == str(domid).encode()
            os.close(connection) if isinstance(connection, int) else connection.close()


def test_close_gives_ports_back_and_is_idempotent(two: Two, channel: Channel) -> None:
    """A closed host's ports are closed: the other end is unbound; and what was ours says so instead of crashing."""
    two.back.close()
    two.back.close()
    two.front.events.notify(channel.front)
    with pytest.raises(EventChannelError):
        two.back.events.notify(channel.back)
    with pytest.raises(EventChannelError):
        two.back.events.alloc_unbound(two.front_domid)
    with pytest.raises(GrantError):
        two.back.grants.map(two.front_domid, [Gref(8)])
