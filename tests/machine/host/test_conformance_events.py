"""Event channels and the store on both kinds of host: what a driver may rely on.

The real host is tested in one domain, that grants to itself, as Xen allows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from tests.doubles.two_hosts import Two, ask, readable
from xenbusd.errors import EventChannelError, GrantError
from xenbusd.ids import Gref, Port
from xenbusd.store.wire import Op, pack


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


def test_new_binding_is_pending(two: Two) -> None:
    """A new binding finds its port pending, once, since a notification may have come before (T60)."""
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
    """A closed host's ports are closed: the other end is unbound, and calls on ours are errors instead of crashes."""
    two.back.close()
    two.back.close()
    two.front.events.notify(channel.front)
    with pytest.raises(EventChannelError):
        two.back.events.notify(channel.back)
    with pytest.raises(EventChannelError):
        two.back.events.alloc_unbound(two.front_domid)
    with pytest.raises(GrantError):
        two.back.grants.map(two.front_domid, [Gref(8)])
