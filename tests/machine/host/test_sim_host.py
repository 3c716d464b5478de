"""A simulated host's life: its sockets, its descriptors, its threads and its end."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from xenbusd.errors import EventChannelError, GrantError, StoreLost, UsageError
from xenbusd.host.sim.client import SimHost, census
from xenbusd.host.sim.protocol import Verb, pack
from xenbusd.host.sim.thread import broker_in_thread
from xenbusd.ids import PAGE_SIZE, Domid, Gref


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """After a life full of everything, orderly and not, broker and clients have closed all that they opened."""
    where = str(tmp_path / "host")
    with broker_in_thread(where):
        SimHost(where).close()
    before = sorted(os.listdir("/proc/self/fd"))
    with broker_in_thread(where):
        dom0, guest = SimHost(where), SimHost(where, Domid(3))
        shares = [guest.grants.share(Domid(0), 2, writable=bool(number % 2)) for number in range(10)]
        mappings = [
            dom0.grants.map(Domid(3), share.grefs, writable=bool(number % 2)) for number, share in enumerate(shares)
        ]
        ports = [guest.events.alloc_unbound(Domid(0)) for _ in range(10)]
        for port in ports:
            dom0.events.bind_interdomain(Domid(3), port)
        stores = [dom0.store.open(), guest.store.open()]
        with pytest.raises(GrantError):
            dom0.grants.map(Domid(3), [shares[0].grefs[0], Gref(999)])
        for share in shares[:5]:
            share.unshare()
        for port in ports[:5]:
            guest.events.unbind(port)
        guest.close()
        for mapping in mappings:
            mapping.unmap()
        dom0.close()
        for store in stores:
            assert isinstance(store, socket.socket)
            store.close()
        abandoned = SimHost(where, Domid(4))
        abandoned.grants.share(Domid(0), 1)
        abandoned.events.alloc_unbound(Domid(0))
    abandoned.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_second_host_at_the_same_path_is_refused(path: str) -> None:
    """A living host's socket is not taken away from it."""
    with pytest.raises(UsageError, match="is in use"), broker_in_thread(path):
        pass
    SimHost(path).close()


def test_dead_hosts_socket_is_replaced(tmp_path: Path) -> None:
    """What a killed broker has left behind is no obstacle."""
    where = str(tmp_path / "host")
    for kind, name in ((socket.SOCK_SEQPACKET, where), (socket.SOCK_STREAM, f"{where}.store")):
        with socket.socket(socket.AF_UNIX, kind) as dead:
            dead.bind(name)
    with broker_in_thread(where):
        SimHost(where).close()
    assert os.listdir(tmp_path) == []


def test_taken_store_socket_leaves_nothing_behind(tmp_path: Path) -> None:
    """If the store's socket is taken, the broker's is removed again, and the message names the path."""
    (tmp_path / "host.store").write_text("mine")
    with pytest.raises(UsageError, match=r"host\.store"), broker_in_thread(str(tmp_path / "host")):
        pass
    assert os.listdir(tmp_path) == ["host.store"]


def test_everything_fails_cleanly_after_the_brokers_end(tmp_path: Path) -> None:
    """A host whose broker has gone gives errors, not hangs; what was mapped stays readable."""
    where = str(tmp_path / "host")
    with broker_in_thread(where):
        host = SimHost(where, Domid(1))
        share = host.grants.share(Domid(0), 1)
        port = host.events.alloc_unbound(Domid(0))
    share.view[0] = 1
    host.events.notify(port)
    with pytest.raises(GrantError, match="endpoint shutdown"):
        host.grants.share(Domid(0), 1)
    with pytest.raises(EventChannelError):
        host.events.alloc_unbound(Domid(0))
    with pytest.raises(StoreLost, match="domain 1"):
        host.store.open()
    share.unshare()
    host.events.unbind(port)
    host.close()


def test_pages_cannot_be_pulled_from_under_anybody(path: str) -> None:
    """The size of a shared file is sealed: a process that could truncate it would kill all others that map it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
        bad.connect(path)
        bad.send(pack((Verb.HELLO, 1)))
        bad.recv(100)
        bad.send(pack((Verb.SHARE, 0, 2, 1)))
        _, fds, _, _ = socket.recv_fds(bad, 100, 4)
        (fd,) = fds
        with pytest.raises(PermissionError):
            os.ftruncate(fd, PAGE_SIZE)
        os.close(fd)


def test_threads_may_share_a_host(path: str) -> None:
    """Several threads map and unmap through one host at the same time, each getting its own page."""
    with closing(SimHost(path, Domid(1))) as guest, closing(SimHost(path)) as dom0:
        share = guest.grants.share(Domid(0), 8)
        for page in range(8):
            share.view[page * PAGE_SIZE] = page

        def look(page: int) -> int:
            mapping = dom0.grants.map(Domid(1), [share.grefs[page]])
            seen = mapping.view[0]
            mapping.unmap()
            return seen

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(look, list(range(8)) * 20)) == list(range(8)) * 20
        assert census(path)[Domid(1)].grants_mapped == 0


def test_broker_out_of_descriptors_recovers(path: str) -> None:
    """A connection that comes while the broker has no descriptor left is taken as soon as it has one."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waiting, closing(SimHost(path)) as dom0:
        waiting.settimeout(20)
        highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        fillers = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(os.dup(0))
            waiting.connect(path)
            waiting.send(pack((Verb.HELLO, 2)))
            with pytest.raises(GrantError, match="Too many open files"):
                dom0.grants.share(Domid(0), 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in fillers:
                os.close(fd)
        assert waiting.recv(100) == pack((0,))
        assert census(path)[Domid(2)].processes == 1
