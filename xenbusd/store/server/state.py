"""The whole state of the embedded store: nodes, watches, domains, and who is notified of a change. Pure.

Source: docs/misc/xenstore.txt, tools/xenstore/xenstored_watch.c (fire_watches), xenstored_domain.c.
"""

from __future__ import annotations

import errno

from xenbusd.store.server import verbs
from xenbusd.store.server.caller import Caller
from xenbusd.store.server.domains import Domain, Domains
from xenbusd.store.server.permissions import READ
from xenbusd.store.server.quotas import Quotas, Refusal
from xenbusd.store.server.tree import INTRODUCE_DOMAIN, RELEASE_DOMAIN, ROOT, Change, Tree, parent
from xenbusd.store.server.watches import Watch, Watches


class State:
    """Nodes, watches and domains.

    Args:
        quotas: the limits of every domain other than 0.
    """

    def __init__(self, quotas: Quotas) -> None:
        self.tree = Tree()
        self.watches = Watches()
        self.domains = Domains(quotas)
        self._callers: dict[Domain, set[Caller]] = {}
        self.closed = False

    def join(self, caller: Caller) -> None:
        """Add a new caller."""
        self._callers.setdefault(caller.domain, set()).add(caller)

    def callers(self, domain: Domain) -> list[Caller]:
        """Return the domain's connections."""
        return list(self._callers.get(domain, ()))

    def leave(self, caller: Caller) -> None:
        """Forget a caller with its watches and transactions. Idempotent."""
        self.reset(caller)
        here = self._callers.get(caller.domain, set())
        here.discard(caller)
        if not here:
            self._callers.pop(caller.domain, None)

    def close(self) -> None:
        """End every connection, and accept no new one."""
        self.closed = True
        for caller in [caller for here in self._callers.values() for caller in here]:
            caller.drop()

    def introduce(self, domid: int) -> None:
        """Make a domain known and fire @introduceDomain; do nothing if it is known already.

        Raises:
            Refusal: EINVAL: no domain can have this number.
        """
        domain = self.domains.get(domid)
        if not domain.introduced:
            domain.introduced = True
            self._fire_special(INTRODUCE_DOMAIN)

    def release(self, domid: int) -> None:
        """Forget a domain that has ended: end its connections, delete the nodes that it owns, remove it from permission
        lists.

        @releaseDomain fires after that, and only if the domain had been introduced.
        """
        domain = self.domains.forget(domid)
        if domain is not None:
            for caller in self.callers(domain):
                self.leave(caller)
                caller.drop()
        self._disown(domid)
        if domain is not None and domain.introduced:
            self._fire_special(RELEASE_DOMAIN)

    def watch(self, caller: Caller, path: bytes, token: bytes, cut: int) -> None:
        """Register a watch, which fires at once (T1).

        Args:
            caller: the connection to notify.
            path: an absolute path, or a special name.
            token: any bytes without a NUL.
            cut: bytes to take off the front of the paths that it reports.

        Raises:
            Refusal: EEXIST: it is registered already. E2BIG: the domain has reached its limit.
        """
        domain = caller.domain
        if (path, token) in caller.watches:
            raise Refusal(errno.EEXIST)
        if not domain.privileged and domain.watches >= domain.quotas.watches:
            raise Refusal(errno.E2BIG)
        watch = caller.watches[path, token] = Watch(caller, path, token, cut)
        domain.watches += 1
        self.watches.add(watch)
        caller.notify(watch, path)

    def unwatch(self, caller: Caller, path: bytes, token: bytes) -> None:
        """Forget a watch and its events that have not been taken.

        Raises:
            Refusal: ENOENT: there is none.
        """
        watch = caller.watches.pop((path, token), None)
        if watch is None:
            raise Refusal(errno.ENOENT)
        self._forget_watch(watch)

    def reset(self, caller: Caller) -> None:
        """Remove a caller's watches and transactions."""
        for watch in caller.watches.values():
            self._forget_watch(watch)
        caller.watches.clear()
        caller.domain.transactions -= len(caller.transactions)
        caller.transactions.clear()

    def fire(self) -> None:
        """Notify the watches of all changes in the tree, in order."""
        changes = self.tree.changes
        if self.watches:
            for change in changes:
                path = change.path
                for watch in self.watches.on(path) if change.exact else self.watches.covering(path):
                    if watch.caller.domain.privileged or self._may_hear(watch.caller.domain, change):
                        watch.caller.notify(watch, path)
        changes.clear()

    def _may_hear(self, domain: Domain, change: Change) -> bool:
        """Return whether a domain may read the node, or the one above it, now or before the change."""
        if any(domain.allow(perms) & READ for perms in change.former):
            return True
        node = self.tree.find(change.path)
        if node is None:
            return False
        if domain.allow(node.perms) & READ:
            return True
        above = None if change.path == ROOT else self.tree.find(parent(change.path))
        return above is not None and domain.allow(above.perms) & READ != 0

    def _fire_special(self, name: bytes) -> None:
        perms = self.tree.nodes[name].perms
        for watch in self.watches.on(name):
            if watch.caller.domain.allow(perms) & READ:
                watch.caller.notify(watch, name)

    def _forget_watch(self, watch: Watch) -> None:
        self.watches.remove(watch)
        watch.caller.domain.watches -= 1
        watch.caller.discard(watch)

    def _disown(self, domid: int) -> None:
        tree = self.tree
        for path, node in list(tree.nodes.items()):
            if tree.nodes.get(path) is not node:
                continue
            perms = node.perms
            if perms.owner == domid:
                if path != ROOT and path.startswith(ROOT):
                    verbs.remove(tree, path)
                    continue
                perms = perms.owned_by(0)
            perms = perms.without(domid)
            if perms is not node.perms:
                tree.replace(path, node.value, perms)
        self.fire()
