"""The simulated machine: its domains, the processes in them, and the requests that each process may make.

No sockets to clients here; the broker takes requests and sends answers. The words of each request are described at
its `Verb`.
"""

from __future__ import annotations

import errno
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from xenbusd.host.sim.domain import Domain, Grant, Memory, Port, Refusal
from xenbusd.host.sim.protocol import U32, Holdings, Request, Verb
from xenbusd.host.sim.tree import Node, dom0_nodes, domain_nodes, domain_roots
from xenbusd.ids import DOM0, DOMID_FIRST_RESERVED
from xenbusd.store.server import StoreServer


class Answer(NamedTuple):
    """The answer to a process."""

    words: Sequence[int] = ()
    fds: Sequence[int] = ()
    """Sent beside the words; they stay open here."""
    parting: socket.socket | None = None
    """A socket whose descriptor is among these, and which is closed here once it has been sent."""


@dataclass(eq=False)
class Process:
    """One connection to the broker, and everything held through it."""

    domain: Domain | None = None
    shares: dict[int, tuple[list[int], Memory]] = field(default_factory=dict)
    """First gref -> all of them, and the pages."""
    mappings: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Handle -> whose pages, and how many."""
    last_handle: int = 0
    ports: set[int] = field(default_factory=set)


class Machine:
    """All domains. Domain 0 is there from the start and never dies.

    Args:
        store: is notified of each domain's creation and death, and gets the nodes that a toolstack would write.
    """

    def __init__(self, store: StoreServer) -> None:
        self._store = store
        self._domains = {int(DOM0): Domain(DOM0, "")}
        self._processes: set[Process] = set()
        self._verbs: dict[Verb, Callable[[Process, Domain, tuple[int, ...]], Answer]] = {
            Verb.STORE: self._open_store,
            Verb.SHARE: self._share,
            Verb.UNSHARE: self._unshare,
            Verb.MAP: self._map,
            Verb.UNMAP: self._unmap,
            Verb.COPY: self._copy,
            Verb.ALLOC_UNBOUND: self._alloc_unbound,
            Verb.BIND_INTERDOMAIN: self._bind_interdomain,
            Verb.UNBIND: self._unbind,
        }
        self._plant(dom0_nodes())

    def enter(self) -> Process:
        """Add a process that has connected; it is in no domain yet."""
        process = Process()
        self._processes.add(process)
        return process

    def leave(self, process: Process) -> None:
        """Take back everything that a process held, once it has ended. The last process of a domain ends the domain."""
        self._processes.remove(process)
        domain = process.domain
        if domain is None:
            return
        for number in process.ports:
            domain.unbind(number)
        for grefs, memory in process.shares.values():
            domain.unshare(grefs, memory)
        domain.processes -= 1
        if not domain.processes and domain.domid != DOM0:
            self._bury(domain)

    def answer(self, process: Process, request: Request) -> Answer:
        """Carry out a process's request.

        Raises:
            Refusal: its domain may not have what it asks for.
            OSError: the broker's process is out of descriptors or memory.
        """
        if request.verb is Verb.CENSUS:
            return self._census()
        if request.verb is Verb.HELLO:
            return self._hello(process, request.words[0])
        if process.domain is None:
            raise Refusal(errno.ENOTCONN)
        return self._verbs[request.verb](process, process.domain, request.words)

    # -- domains ------------------------------------------------------------------------------------------------

    def _hello(self, process: Process, domid: int) -> Answer:
        if domid >= DOMID_FIRST_RESERVED or process.domain is not None:
            raise Refusal(errno.EINVAL)
        domain = self._domains.get(domid)
        if domain is None:
            domain = self._domains[domid] = Domain(domid, str(uuid.uuid4()))
            self._plant(domain_nodes(domid, domain.vm))
            self._store.introduce(domid)
        domain.processes += 1
        process.domain = domain
        return Answer()

    def _bury(self, domain: Domain) -> None:
        """Do the work of Xen for a dead domain, and then that of a toolstack."""
        del self._domains[domain.domid]
        self._store.release(domain.domid)
        for path in domain_roots(domain.domid, domain.vm):
            if self._store.exists(path):
                self._store.rm(path)

    def _plant(self, nodes: list[Node]) -> None:
        for node in nodes:
            self._store.write(node.path, node.value, node.perms)

    def _living(self, domid: int) -> Domain:
        domain = self._domains.get(domid)
        if domain is None:
            raise Refusal(errno.ESRCH)
        return domain

    def _open_store(self, _process: Process, domain: Domain, _words: tuple[int, ...]) -> Answer:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._store.attach(ours, domain.domid)
        return Answer((), (theirs.fileno(),), theirs)

    def _census(self) -> Answer:
        mapped: Counter[int] = Counter()
        for process in self._processes:
            for domid, pages in process.mappings.values():
                mapped[domid] += pages
        words: list[int] = []
        for domid in sorted(self._domains.keys() | mapped.keys()):
            domain = self._domains.get(domid)
            if domain is None:
                words += Holdings(domid, 0, 0, 0, 0, mapped[domid])
            else:
                bound = sum(port.bound for port in domain.ports.values())
                words += Holdings(domid, domain.processes, len(domain.ports), bound, len(domain.grants), mapped[domid])
        return Answer(words)

    # -- grants -------------------------------------------------------------------------------------------------

    def _share(self, process: Process, domain: Domain, words: tuple[int, ...]) -> Answer:
        domid, pages, writable = words
        self._living(domid)
        grefs, memory = domain.share(domid, pages, bool(writable))
        process.shares[grefs[0]] = grefs, memory
        return Answer((grefs[0],), (memory.fd,))

    def _unshare(self, process: Process, domain: Domain, words: tuple[int, ...]) -> Answer:
        share = process.shares.pop(words[0], None)
        if share is None:
            raise Refusal(errno.EINVAL)
        domain.unshare(*share)
        return Answer()

    def _map(self, process: Process, domain: Domain, words: tuple[int, ...]) -> Answer:
        domid, writable, grefs = words[0], bool(words[1]), words[2:]
        granting = self._living(domid)
        grants: list[Grant] = []
        refused: dict[int, int] = {}
        for gref in grefs:
            try:
                grants.append(granting.granted(gref, domain.domid, writable))
            except Refusal as refusal:
                refused[gref] = refusal.errno
        if refused:
            raise Refusal(next(iter(refused.values())), list(refused))
        if process.last_handle == U32:
            raise Refusal(errno.ENOSPC)
        parcel = Parcel()
        places = [word for grant in grants for word in parcel.add(grant, writable)]
        process.last_handle += 1
        process.mappings[process.last_handle] = domid, len(grefs)
        return Answer((process.last_handle, *places), parcel.fds)

    def _unmap(self, process: Process, _domain: Domain, words: tuple[int, ...]) -> Answer:
        if process.mappings.pop(words[0], None) is None:
            raise Refusal(errno.EINVAL)
        return Answer()

    def _copy(self, _process: Process, domain: Domain, words: tuple[int, ...]) -> Answer:
        parcel = Parcel()
        places: list[int] = []
        for domid, gref, writable in zip(words[::3], words[1::3], words[2::3], strict=True):
            try:
                grant = self._living(domid).granted(gref, domain.domid, bool(writable))
                places += 0, *parcel.add(grant, bool(writable))
            except Refusal as refusal:
                places += refusal.errno, 0, 0
        return Answer(places, parcel.fds)

    # -- event channels -----------------------------------------------------------------------------------------

    def _alloc_unbound(self, process: Process, domain: Domain, words: tuple[int, ...]) -> Answer:
        if words[0] >= DOMID_FIRST_RESERVED:
            raise Refusal(errno.ESRCH)
        return self._hand_over(process, domain.alloc_unbound(words[0]))

    def _bind_interdomain(self, process: Process, domain: Domain, words: tuple[int, ...]) -> Answer:
        return self._hand_over(process, domain.bind_interdomain(self._living(words[0]), words[1]))

    def _hand_over(self, process: Process, port: Port) -> Answer:
        process.ports.add(port.number)
        return Answer((port.number,), port.descriptors)

    def _unbind(self, process: Process, domain: Domain, words: tuple[int, ...]) -> Answer:
        if words[0] not in process.ports:
            raise Refusal(errno.ENOTCONN)
        process.ports.remove(words[0])
        domain.unbind(words[0])
        return Answer()


class Parcel:
    """Descriptors to send beside an answer, each once, however many pages of its file the answer names."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._index: dict[int, int] = {}

    def add(self, grant: Grant, writable: bool) -> tuple[int, int]:
        """Return the place of the page: the index of its file's descriptor, and the page in it."""
        fd = grant.memory.descriptor(writable)
        index = self._index.get(fd)
        if index is None:
            index = self._index[fd] = len(self.fds)
            self.fds.append(fd)
        return index, grant.page
