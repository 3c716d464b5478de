"""The simulated host with several processes: births and deaths of domains, and clients that misbehave."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from xenbusd.errors import EventChannelError, GrantError, StoreLost, UsageError
from xenbusd.host.sim.client import SimHost, census
from xenbusd.host.sim.protocol import CENSUS_BYTES_MAX, Holdings, Verb, pack
from xenbusd.host.sim.thread import broker_in_thread
from xenbusd.ids import PAGE_SIZE, Domid, Gref, Port
from xenbusd.store.wire import HEADER, Message, Op
from xenbusd.store.wire import pack as pack_message

DYING = """
import sys
from xenbusd.host.sim.client import SimHost
host = SimHost(sys.argv[1], int(sys.argv[2]))
share = host.grants.share(0, 3)
share.view[0:5] = b"alive"
port = host.events.alloc_unbound(0)
store = host.store.open()
foreign = host.grants.map(0, [int(sys.argv[3])])
bound = host.events.bind_interdomain(0, int(sys.argv[4]))
print(share.grefs[0], port, flush=True)
sys.stdin.read()
"""
"""A guest that takes hold of one of everything, and waits for its end."""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A running simulated host's socket."""
    where = str(tmp_path / "host")
    with broker_in_thread(where):
        yield where


class Store:
    """A blocking client of the store, for a socket that is connected to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(20)

    def receive(self) -> Message:
        """Take the next packet."""
        op, req_id, tx_id, length = HEADER.unpack(self._exactly(HEADER.size))
        return Message(op, req_id, tx_id, self._exactly(length))

    def ask(self, op: Op, *words: str) -> Message:
        """Send one request; return its answer."""
        self.sock.sendall(pack_message(op, 1, 0, b"".join(word.encode() + b"\0" for word in words)))
        return self.receive()

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.sock.recv(length - len(data))
            assert part, "the store has closed the connection"
            data += part
        return data


def open_store(host: SimHost) -> socket.socket:
    """Open a connection to the store as the domain that `host` is in."""
    opened = host.store.open()
    assert isinstance(opened, socket.socket)
    return opened


def start_guest(path: str, domid: int, gref: int, port: int) -> tuple[subprocess.Popen[str], Gref, Port]:
    """Start a `DYING` guest and wait until it holds what it holds."""
    guest = subprocess.Popen(
        [sys.executable, "-c", DYING, path, str(domid), str(gref), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert guest.stdout is not None
    words = guest.stdout.readline().split()
    assert len(words) == 2, "the guest did not come up"
    return guest, Gref(int(words[0])), Port(int(words[1]))


def bury(guest: subprocess.Popen[str]) -> None:
    """Kill a guest without a chance to clean up."""
    guest.send_signal(signal.SIGKILL)
    guest.wait()
    for pipe in (guest.stdin, guest.stdout):
        if pipe is not None:
            pipe.close()


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
    """Who sends what is no request is cut off; a neighbour does not notice."""
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
    """Unmap, unshare and unbind work on what was got through the same connection only."""
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


def test_who_never_listens_is_cut_off(path: str) -> None:
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
    """When the store's socket cannot be had the broker's goes again, and the message names the path."""
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
