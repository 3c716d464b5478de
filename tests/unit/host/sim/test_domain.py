"""The broker's record of one domain."""

from __future__ import annotations

import errno
import os

import pytest

from xenbusd.host.sim.domain import FIRST_GREF, GRANTS_MAX, PORTS_MAX, Channel, Domain, Memory, Port, Refusal
from xenbusd.ids import PAGE_SIZE


@pytest.fixture
def domain() -> Domain:
    """Domain 3, new."""
    return Domain(3, "")


def refused(code: int, call: object, *arguments: object) -> None:
    """Check that a call is refused with this errno."""
    assert callable(call)
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    assert caught.value.errno == code


def test_references_begin_where_xen_lets_them_and_never_come_again(domain: Domain) -> None:
    """The first eight are reserved; one that was taken back is not given out again."""
    grefs, memory = domain.share(0, 2, True)
    assert grefs == [FIRST_GREF, FIRST_GREF + 1]
    domain.unshare(grefs, memory)
    more, memory = domain.share(0, 1, True)
    assert more == [FIRST_GREF + 2]
    domain.unshare(more, memory)
    assert not domain.grants


def test_memory_is_zeroed_and_of_a_fixed_size() -> None:
    """New pages are empty, and their number cannot change."""
    memory = Memory(2)
    assert os.pread(memory.fd, 2 * PAGE_SIZE + 1, 0) == bytes(2 * PAGE_SIZE)
    for size in (PAGE_SIZE, 3 * PAGE_SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    memory.close()
    memory.close()


def test_read_only_descriptor_cannot_write() -> None:
    """A domain that may only read gets a read-only descriptor."""
    memory = Memory(1)
    os.pwrite(memory.descriptor(True), b"x", 0)
    reader = memory.descriptor(False)
    assert os.pread(reader, 1, 0) == b"x"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(reader, b"y", 0)
    assert memory.descriptor(False) == reader
    memory.close()


def test_grant_is_for_one_domain_and_one_kind_of_access(domain: Domain) -> None:
    """A page is found only by whom it was granted to, and only for what it was granted for."""
    grefs, memory = domain.share(5, 1, False)
    assert domain.granted(grefs[0], 5, False).page == 0
    refused(errno.EACCES, domain.granted, grefs[0], 5, True)
    refused(errno.EACCES, domain.granted, grefs[0], 6, False)
    refused(errno.EINVAL, domain.granted, grefs[0] + 1, 5, False)
    domain.unshare(grefs, memory)
    refused(errno.EINVAL, domain.granted, grefs[0], 5, False)


def test_grants_have_a_limit(domain: Domain) -> None:
    """A domain cannot grant more than a grant table has room for; nothing at all is no share."""
    refused(errno.ENOSPC, domain.share, 0, GRANTS_MAX + 1, True)
    refused(errno.EINVAL, domain.share, 0, 0, True)
    grefs, memory = domain.share(0, GRANTS_MAX, True)
    refused(errno.ENOSPC, domain.share, 0, 1, True)
    domain.unshare(grefs, memory)


def test_ports_have_a_limit(domain: Domain) -> None:
    """A domain's table of ports can be full."""
    channel = Channel((3, 0))
    domain.ports = {number: Port(number, channel, 0) for number in range(PORTS_MAX)}
    refused(errno.ENOSPC, domain.alloc_unbound, 0)
    refused(errno.ENOSPC, domain.bind_interdomain, Domain(4, ""), 1)
    for bell in channel.bells:
        os.close(bell)


def test_both_ends_hold_the_same_bells_crosswise(domain: Domain) -> None:
    """Each end waits on the bell that the other rings; the new end is rung at once (T60), the old one is not."""
    dom0 = Domain(0, "")
    front = domain.alloc_unbound(0)
    assert not front.bound
    back = dom0.bind_interdomain(domain, front.number)
    assert front.bound
    assert back.descriptors == front.descriptors[::-1]
    wait, signal = back.descriptors
    assert os.eventfd_read(wait) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(signal)
    dom0.unbind(back.number)
    domain.unbind(front.number)


def test_bell_that_cannot_ring_louder_rings(domain: Domain) -> None:
    """A counter filled to the brim by a hostile domain does not hinder a bind."""
    dom0 = Domain(0, "")
    front = domain.alloc_unbound(0)
    os.eventfd_write(front.descriptors[1], 2**64 - 2)
    back = dom0.bind_interdomain(domain, front.number)
    assert os.eventfd_read(back.descriptors[0]) == 2**64 - 2
    dom0.unbind(back.number)
    domain.unbind(front.number)


def test_bind_needs_an_unbound_port_that_is_reserved_for_us(domain: Domain) -> None:
    """A port of another domain's, a bound one and none at all are refused."""
    dom0, stranger = Domain(0, ""), Domain(7, "")
    front = domain.alloc_unbound(0)
    refused(errno.EINVAL, stranger.bind_interdomain, domain, front.number)
    refused(errno.EINVAL, dom0.bind_interdomain, domain, front.number + 1)
    back = dom0.bind_interdomain(domain, front.number)
    refused(errno.EINVAL, dom0.bind_interdomain, domain, front.number)
    dom0.unbind(back.number)
    domain.unbind(front.number)


@pytest.mark.parametrize("first", ["front", "back"])
def test_either_end_may_close_and_be_bound_again(domain: Domain, first: str) -> None:
    """Whichever end closes, the other is unbound, reserved for the same domain, and takes a new one (T64)."""
    dom0 = Domain(0, "")
    front = domain.alloc_unbound(0)
    back = dom0.bind_interdomain(domain, front.number)
    if first == "back":
        dom0.unbind(back.number)
        assert not front.bound
        again = dom0.bind_interdomain(domain, front.number)
        assert again.descriptors == back.descriptors
        domain.unbind(front.number)
        dom0.unbind(again.number)
    else:
        domain.unbind(front.number)
        assert not back.bound
        again = domain.bind_interdomain(dom0, back.number)
        assert again.descriptors == front.descriptors
        dom0.unbind(back.number)
        domain.unbind(again.number)
    assert not dom0.ports
    assert not domain.ports


def test_last_end_closes_the_descriptors(domain: Domain) -> None:
    """A channel without ends has no open files; one with an end has both."""
    before = len(os.listdir("/proc/self/fd"))
    dom0 = Domain(0, "")
    front = domain.alloc_unbound(0)
    back = dom0.bind_interdomain(domain, front.number)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    domain.unbind(front.number)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    dom0.unbind(back.number)
    assert len(os.listdir("/proc/self/fd")) == before
