"""Domains of a simulated host: they come, die, are seen in the store, and cannot reach another's resources."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from tests.doubles.sim_guests import Store, bury, open_store, start_guest
from xenbusd.errors import EventChannelError, GrantError
from xenbusd.host.sim.client import SimHost, census
from xenbusd.host.sim.protocol import CENSUS_BYTES_MAX, Holdings, Verb, pack
from xenbusd.ids import Domid
from xenbusd.store.wire import Op


def test_killed_domain_gives_everything_back(path: str) -> None:
    """SIGKILL: ports, grants and mappings are back, @releaseDomain fires, the domain's nodes go, and dom0 works on."""
    with closing(SimHost(path)) as dom0, open_store(dom0) as connection:
        store = Store(connection)
        # The domain must exist before anything can be shared with it; this process is in it for that moment.
        with closing(SimHost(path, Domid(5))):
            ours = dom0.grants.share(Domid(5), 1)
            open_port = dom0.events.alloc_unbound(Domid(5))
        before = census(path)
        guest, gref, port = start_guest(path, 5, ours.grefs[0], open_port)
        during = census(path)
        assert during[Domid(5)] == Holdings(5, processes=1, ports=2, ports_bound=1, grants_shared=3, grants_mapped=0)
        assert during[Domid(0)].grants_mapped == 1

        mapping = dom0.grants.map(Domid(5), [gref])
        bound = dom0.events.bind_interdomain(Domid(5), port)
        assert store.ask(Op.WATCH, "@releaseDomain", "token").op == Op.WATCH
        assert store.receive().payload == b"@releaseDomain\0token\0"  # every watch fires once at first

        bury(guest)
        assert store.receive().payload == b"@releaseDomain\0token\0"
        assert store.ask(Op.READ, "/local/domain/5/domid").op == Op.ERROR
        assert store.ask(Op.IS_DOMAIN_INTRODUCED, "5").payload == b"F\0"

        # Like a zombie of Xen's: dead, and remembered for the page that dom0 still has mapped. The page lives on.
        assert census(path)[Domid(5)] == Holdings(5, 0, 0, 0, 0, grants_mapped=1)
        assert bytes(mapping.view[0:5]) == b"alive"
        dom0.events.notify(bound)
        with pytest.raises(GrantError, match="No such process"):
            dom0.grants.map(Domid(5), [gref])
        mapping.unmap()
        dom0.events.unbind(bound)
        assert census(path) == before


def test_domain_lives_as_long_as_its_last_process(path: str) -> None:
    """Two processes of a domain hold separate things; the first to go takes only its own."""
    one, other = SimHost(path, Domid(2)), SimHost(path, Domid(2))
    port = other.events.alloc_unbound(Domid(0))
    one.grants.share(Domid(0), 4)
    assert census(path)[Domid(2)] == Holdings(2, 2, ports=1, ports_bound=0, grants_shared=4, grants_mapped=0)
    with pytest.raises(EventChannelError):
        one.events.notify(port)
    one.close()
    assert census(path)[Domid(2)] == Holdings(2, 1, ports=1, ports_bound=0, grants_shared=0, grants_mapped=0)
    other.close()
    assert Domid(2) not in census(path)


def test_dom0_never_dies(path: str) -> None:
    """Closing domain 0's only connection takes what it held, and leaves the domain."""
    with closing(SimHost(path)) as dom0:
        dom0.events.alloc_unbound(Domid(3))
    assert census(path) == {Domid(0): Holdings(0, 0, 0, 0, 0, 0)}
    with closing(SimHost(path)) as dom0, open_store(dom0) as connection:
        assert Store(connection).ask(Op.READ, "domid").payload == b"0"
        assert census(path)[Domid(0)].processes == 1


def test_domid_can_be_used_again(path: str) -> None:
    """A new domain of a dead one's number starts from nothing, even while pages of the dead one are mapped."""
    with closing(SimHost(path)) as dom0:
        with closing(SimHost(path, Domid(4))) as first:
            share = first.grants.share(Domid(0), 1)
            share.view[0] = 1
            old = dom0.grants.map(Domid(4), share.grefs)
        with closing(SimHost(path, Domid(4))) as second:
            with pytest.raises(GrantError, match="not granted: 8"):
                dom0.grants.map(Domid(4), share.grefs)
            again = second.grants.share(Domid(0), 1)
            new = dom0.grants.map(Domid(4), again.grefs)
            assert (old.view[0], new.view[0]) == (1, 0)
            assert census(path)[Domid(4)].grants_mapped == 2
            old.unmap()
            new.unmap()


def test_store_shows_what_a_toolstack_writes(path: str) -> None:
    """A guest finds its home in the store with libxl's permissions, and can write where it should be able to."""
    with (
        closing(SimHost(path, Domid(7))) as guest,
        closing(SimHost(path)) as dom0,
        open_store(guest) as guests_socket,
        open_store(dom0) as dom0s_socket,
    ):
        mine, dom0s = Store(guests_socket), Store(dom0s_socket)
        assert mine.ask(Op.READ, "domid").payload == b"7"
        assert mine.ask(Op.GET_PERMS, "/local/domain/7").payload == b"n0\0r7\0"
        assert dom0s.ask(Op.GET_PERMS, "/local/domain/7/device").payload == b"n0\0r7\0"
        assert dom0s.ask(Op.GET_PERMS, "/local/domain/7/error").payload == b"n7\0"
        assert mine.ask(Op.MKDIR, "error/device").op == Op.MKDIR
        assert mine.ask(Op.MKDIR, "device/vbd").payload == b"EACCES\0"
        assert dom0s.ask(Op.READ, "/local/domain/0/name").payload == b"Domain-0"
        vm = mine.ask(Op.READ, "vm").payload.decode()
        assert dom0s.ask(Op.READ, f"{vm}/name").payload == b"sim-7"


@pytest.mark.skipif(not shutil.which("xenstore-ls"), reason="Xen's tools are missing: apt install xenstore-utils")
def test_xens_own_tools_see_the_domains(path: str) -> None:
    """Debian's xenstore-ls, pointed at the store's socket, lists what the broker has written, with permissions."""
    with closing(SimHost(path, Domid(7))), closing(SimHost(path)) as dom0:
        assert dom0.store.socket_path is not None
        listed = subprocess.run(
            ["xenstore-ls", "-f", "-p", "/local/domain"],
            env={**os.environ, "XENSTORED_PATH": dom0.store.socket_path},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    lines = {" ".join(line.split()) for line in listed.splitlines()}
    assert '/local/domain/0/name = "Domain-0" (n0)' in lines
    assert '/local/domain/7/domid = "7" (n0,r7)' in lines
    assert '/local/domain/7/error = "" (n7)' in lines


def test_store_endpoint_names_itself(path: str) -> None:
    """Domain 0 can tell Xen's tools where the store is; a guest has no socket of the store's to name."""
    with closing(SimHost(path, Domid(7))) as guest, closing(SimHost(path)) as dom0:
        assert dom0.store.socket_path == f"{path}.store"
        assert guest.store.socket_path is None
        assert guest.store.name == f"sim:{path} domain 7"
        assert guest.name == f"sim:{path}"
        with socket.socket(socket.AF_UNIX) as tool:
            tool.connect(f"{path}.store")
            assert Store(tool).ask(Op.READ, "domid").payload == b"0"


def test_foreign_page_is_refused(path: str) -> None:
    """A page granted to domain 0 is not domain 2's to map or to copy."""
    with closing(SimHost(path, Domid(1))) as one, closing(SimHost(path, Domid(2))) as two:
        share = one.grants.share(Domid(0), 1)
        with pytest.raises(GrantError, match=r"domain 1, references 8, writable; not granted: 8\): Permission denied"):
            two.grants.map(Domid(1), share.grefs)
        assert census(path)[Domid(1)].grants_mapped == 0


def test_foreign_port_is_refused(path: str) -> None:
    """A port opened for domain 0 is not domain 2's to bind."""
    with closing(SimHost(path, Domid(1))) as one, closing(SimHost(path, Domid(2))) as two:
        port = one.events.alloc_unbound(Domid(0))
        with pytest.raises(EventChannelError):
            two.events.bind_interdomain(Domid(1), port)


def test_sharing_with_nobody_is_refused(path: str) -> None:
    """A domain that is not there is named."""
    with closing(SimHost(path)) as dom0, pytest.raises(GrantError, match=r"domain 9, 1 pages\): No such process"):
        dom0.grants.share(Domid(9), 1)


def test_limit_on_grants_is_the_domains_own(path: str) -> None:
    """A domain that grants too much is refused, and nothing of the attempt stays."""
    with closing(SimHost(path, Domid(1))) as greedy:
        with pytest.raises(GrantError, match="No space left"):
            greedy.grants.share(Domid(0), 40000)
        with pytest.raises(GrantError, match="Invalid argument"):
            greedy.grants.share(Domid(0), 0)
        assert census(path)[Domid(1)].grants_shared == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"x",
        b"\xff" * 64,
        pack((99,)),
        pack((Verb.COPY, 1, 2)),
        pack((Verb.MAP, 0, 1, *range(1000))),
        bytes(100_000),
    ],
    ids=["half a word", "no verb", "unknown verb", "half a triple", "too many", "too long"],
)
def test_garbage_costs_its_sender_alone(path: str, garbage: bytes) -> None:
    """A process that sends no valid request is cut off; a neighbour does not notice."""
    with closing(SimHost(path, Domid(1))) as good:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
            bad.connect(path)
            bad.settimeout(20)
            bad.send(garbage)
            try:
                answer = bad.recv(100)
            except ConnectionResetError:
                answer = b""
            assert answer == b""
        good.grants.share(Domid(0), 1)


def test_request_before_hello_is_refused(path: str) -> None:
    """Only a process that has said which domain it is in may ask for anything of a domain's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
        bad.connect(path)
        for request in (pack((Verb.SHARE, 0, 1, 1)), pack((Verb.HELLO, 0x7FF0))):
            bad.send(request)
            assert int.from_bytes(bad.recv(100)[:4], sys.byteorder) != 0
    assert list(census(path)) == [0]


def test_handles_of_another_process_are_out_of_reach(path: str) -> None:
    """Unmap, unshare and unbind work only on handles of the same connection."""
    with closing(SimHost(path, Domid(1))) as owner:
        share = owner.grants.share(Domid(0), 1)
        port = owner.events.alloc_unbound(Domid(0))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as thief:
            thief.connect(path)
            for request in ((Verb.HELLO, 1), (Verb.UNSHARE, share.grefs[0]), (Verb.UNBIND, port), (Verb.UNMAP, 1)):
                thief.send(pack(request))
                refused = int.from_bytes(thief.recv(100)[:4], sys.byteorder) != 0
                assert refused == (request[0] is not Verb.HELLO)
        assert census(path)[Domid(1)][2:5] == (1, 0, 1)


def test_a_client_that_never_reads_is_cut_off(path: str) -> None:
    """A process that asks and asks and takes no answer loses its connection, and the broker goes on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
        bad.connect(path)
        bad.settimeout(20)
        bad.send(pack((Verb.HELLO, 6)))
        asked = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while asked < 1_000_000:
                bad.send(pack((Verb.CENSUS,)))
                asked += 1
        assert asked < 1_000_000
    assert Domid(6) not in census(path)


def test_descriptors_sent_to_the_broker_go_nowhere(path: str) -> None:
    """A process cannot fill the broker's table of open files with its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
        bad.connect(path)
        counts = []
        for _ in range(10):
            socket.send_fds(bad, [pack((Verb.CENSUS,))], [0] * 100)
            assert bad.recv(CENSUS_BYTES_MAX)
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts == counts[:1] * 10
