"""Transactions: a private state over the tree, and its commit. Pure.

A transaction keeps an `Entry` for each node that it has touched and nothing else, so that its cost is that of its
own operations. At commit every answer that the caller was given (a value, permissions, a listing, the absence of a
node) must still hold, or the commit is refused with EAGAIN. Nodes that were only written do not conflict: if another
caller has changed them meanwhile, the edits are done again on the tree as it is then, as oxenstored does. So two
transactions may fill the same directory at once, unless one of them has listed it. They are not done again if the
caller has read anything after the first of them, since that answer might change.

Either way the outcome is as if the whole transaction had happened at the moment of its commit.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from xenbusd.store.server.permissions import Permissions
from xenbusd.store.server.quotas import Refusal
from xenbusd.store.server.tree import ROOT, Change, Node, Tree, View, basename, child, parent

Edit = Callable[[View], None]
"""An edit that can be done again; it raises `Refusal` if it is no longer possible."""


class Entry:
    """The state of one path in a transaction.

    Attributes:
        base: the node in the tree when the path was first touched, None if there was none.
        node: the node as the transaction has it now, None if it has none.
        told: the caller relies on `base`.
        names: the names below `base` as they were first listed; None if they were not.
        generation: of the names below `base` when they were listed or swept away; None if neither.
        fresh: the node was made here, and the nodes that the tree has below it are hidden.
        hidden: `base` is not visible, because a node above it has been removed or made here, or did not exist.
        added: names made here.
        removed: names removed here.
        grown: bytes by which the names have grown; negative if they have shrunk.
    """

    __slots__ = ("added", "base", "fresh", "generation", "grown", "hidden", "names", "node", "removed", "told")

    def __init__(self, base: Node | None) -> None:
        self.base = base
        self.node = base
        self.told = False
        self.names: tuple[bytes, ...] | None = None
        self.generation: int | None = None
        self.fresh = False
        self.hidden = False
        self.added: dict[bytes, None] = {}
        self.removed: set[bytes] = set()
        self.grown = 0


class Transaction:
    """A `View` of the tree that nobody else sees until it is committed.

    Args:
        tree: the tree that this is a view of.
        nodes_max: how many paths it may touch, and how many edits it may hold; None: any number.
    """

    def __init__(self, tree: Tree, nodes_max: int | None = None) -> None:
        self.changes: list[Change] = []
        self.owned: dict[int, int] = {}
        self._tree = tree
        self._nodes_max = nodes_max
        self._entries: dict[bytes, Entry] = {}
        self._edits: list[Edit] = []
        # The caller has read an answer that depends on its own edits: they cannot be done again with another outcome.
        self._bound = False

    def edit(self, edit: Edit) -> None:
        """Do an edit here, and remember it for the commit.

        Raises:
            Refusal: the one that the edit raises; or ENOSPC: the limit on edits is reached.
        """
        most = self._nodes_max
        # One edit may change many nodes, hence both numbers.
        if most is not None and (len(self._edits) >= most or len(self.changes) >= 2 * most):
            raise Refusal(errno.ENOSPC)
        edit(self)
        self._edits.append(edit)

    def find(self, path: bytes) -> Node | None:
        """As `View.find`.

        Raises:
            Refusal: ENOSPC: the transaction has touched as many nodes as it may.
        """
        return self._entry(path).node

    def peek(self, path: bytes) -> Node | None:
        """As `View.peek`."""
        entry = self._entries.get(path)
        if entry is not None:
            return entry.node
        return None if self._is_hidden(path) else self._tree.nodes.get(path)

    def rely(self, path: bytes) -> None:
        """As `View.rely`."""
        entry = self._entries.get(path)
        if entry is not None:
            entry.told = True
            if self._edits or entry.hidden:
                self._bound = True

    def listing(self, path: bytes) -> tuple[Iterable[bytes], int]:
        """As `View.listing`."""
        entry = self._entry(path)
        if entry.names is None and not entry.fresh:
            entry.names = _names(entry.base)
            if entry.generation is None:
                entry.generation = _generation(entry.base)
        return self._names(entry), entry.generation or 0

    def children_bytes(self, path: bytes) -> int:
        """As `View.children_bytes`."""
        entry = self._entry(path)
        if entry.fresh or entry.base is None or entry.base.children is None:
            return entry.grown
        return entry.base.children.size + entry.grown

    def owned_by(self, domid: int) -> int:
        """As `View.owned_by`."""
        return self._tree.owned_by(domid) + self.owned.get(domid, 0)

    def create(self, path: bytes, node: Node) -> None:
        """As `View.create`."""
        entry = self._entry(path)
        above = self._entry(parent(path))
        entry.node = node
        entry.fresh = True
        entry.added = {}
        entry.removed = set()
        entry.grown = 0
        name = basename(path)
        above.added[name] = None
        above.grown += len(name) + 1
        self._count(node.perms.owner, 1)

    def replace(self, path: bytes, value: bytes, perms: Permissions) -> None:
        """As `View.replace`."""
        entry = self._entry(path)
        assert entry.node is not None
        if perms.owner != entry.node.perms.owner:
            self._count(entry.node.perms.owner, -1)
            self._count(perms.owner, 1)
        entry.node = Node(value, perms)

    def below(self, path: bytes) -> list[tuple[bytes, Node]]:
        """As `View.below`."""
        found: list[tuple[bytes, Node]] = []
        waiting = [path]
        while waiting:
            here = waiting.pop()
            entry = self._entry(here)
            if entry.node is not None:
                found.append((here, entry.node))
                waiting.extend(child(here, name) for name in reversed(tuple(self._names(entry))))
        return found

    def remove(self, path: bytes) -> None:
        """As `View.remove`."""
        for here, node in self.below(path):
            entry = self._entries[here]
            if entry.generation is None and not entry.fresh:
                # Names that are added below it before the commit would be left without a parent.
                entry.generation = _generation(entry.base)
            entry.node = None
            self._count(node.perms.owner, -1)
        above = self._entry(parent(path))
        name = basename(path)
        above.added.pop(name, None)
        above.removed.add(name)
        above.grown -= len(name) + 1

    def commit(self, may_own: Callable[[Transaction], bool] = lambda _: True) -> list[Change]:
        """Apply the transaction to the tree, and return the changes, in the order of the edits.

        Args:
            may_own: says whether the nodes that the tree would hold then are within the caller's quota.

        Raises:
            Refusal: EAGAIN: an answer that the caller was given no longer holds, or an edit is no longer possible.
                ENOSPC: `may_own` says no. Nothing has changed then.
        """
        nodes = self._tree.nodes
        alike = True
        for path, entry in self._entries.items():
            now = nodes.get(path)
            if entry.generation is not None and (now is None or _generation(now) != entry.generation):
                if entry.names is not None:
                    raise Refusal(errno.EAGAIN)
                alike = False
            if now is not entry.base:
                if entry.told:
                    raise Refusal(errno.EAGAIN)
                alike = False
        if self._bound and not alike:
            raise Refusal(errno.EAGAIN)
        if not self._edits:
            return []
        outcome = self if alike else self._again()
        if not may_own(outcome):
            raise Refusal(errno.ENOSPC)
        outcome._apply()
        return outcome.changes

    def _again(self) -> Transaction:
        again = Transaction(self._tree, self._nodes_max)
        try:
            for edit in self._edits:
                edit(again)
        except Refusal:
            raise Refusal(errno.EAGAIN) from None
        return again

    def _apply(self) -> None:
        tree = self._tree
        for path, entry in self._entries.items():
            node = entry.node
            if node is None:
                if entry.base is not None:
                    tree.drop(path)
                continue
            if entry.fresh:
                tree.put(path, Node(node.value, node.perms))
            elif node is not entry.base:
                tree.replace(path, node.value, node.perms)
            if entry.added or entry.removed:
                tree.link(path, entry.added, entry.removed)

    def _entry(self, path: bytes) -> Entry:
        entry = self._entries.get(path)
        if entry is None:
            if self._nodes_max is not None and len(self._entries) >= self._nodes_max:
                raise Refusal(errno.ENOSPC)
            entry = Entry(self._tree.nodes.get(path))
            if entry.base is not None and self._is_hidden(path):
                entry.hidden = True
                entry.node = None
            self._entries[path] = entry
        return entry

    def _is_hidden(self, path: bytes) -> bool:
        """Return whether the tree's node at this path, not touched yet, is hidden because of a node above it."""
        while path != ROOT and path.startswith(ROOT):
            path = parent(path)
            entry = self._entries.get(path)
            if entry is not None:
                return entry.node is None or entry.fresh
        return False

    def _names(self, entry: Entry) -> Iterable[bytes]:
        if entry.fresh:
            return tuple(entry.added)
        names = _names(entry.base) if entry.names is None else entry.names
        if not entry.added and not entry.removed:
            return names
        return (*(name for name in names if name not in entry.removed and name not in entry.added), *entry.added)

    def _count(self, domid: int, step: int) -> None:
        self.owned[domid] = self.owned.get(domid, 0) + step


def _names(node: Node | None) -> tuple[bytes, ...]:
    return tuple(node.children.names) if node is not None and node.children is not None else ()


def _generation(node: Node | None) -> int:
    return node.children.generation if node is not None and node.children is not None else 0
