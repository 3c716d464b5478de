"""The tree of nodes: values, permissions, children, and who owns how many of them. Pure.

A node is found by its whole path in one dictionary, so that a read costs the same at any depth. A `Node` never changes
its value and its permissions: a write puts a new `Node` in its place. A transaction therefore remembers what it saw by
holding the object, and detects a change by comparing identities. The names of a node's children are in a `Children`
that passes from each `Node` to its successor.

Source: tools/xenstore/xenstored_core.c (write_node, construct_node), docs/misc/xenstore.txt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import NamedTuple, Protocol

from xenbusd.store.server.permissions import Permissions, permissions

ROOT = b"/"
INTRODUCE_DOMAIN = b"@introduceDomain"
RELEASE_DOMAIN = b"@releaseDomain"

NODE_HEADER_BYTES = 24
"""Bytes that xenstored counts for a node besides its contents (struct xs_tdb_record_hdr)."""
PERMISSION_BYTES = 8
"""Bytes that xenstored counts for one entry of a permission list (struct xs_permissions)."""


class Children:
    """The names below one node, in the order in which they were added.

    `size` is the bytes that xenstored counts for them: each name with its NUL. `generation` is new after every change.
    """

    __slots__ = ("generation", "names", "size")

    def __init__(self) -> None:
        self.names: dict[bytes, None] = {}
        self.size = 0
        self.generation = 0


class Node:
    """A value and its permissions, which never change; and the children, which may."""

    __slots__ = ("children", "perms", "value")

    def __init__(self, value: bytes, perms: Permissions, children: Children | None = None) -> None:
        self.value = value
        self.perms = perms
        self.children = children


class Change(NamedTuple):
    """A change at `path`, for the watches to be notified of."""

    path: bytes
    exact: bool = False
    """Only watches on `path` itself are notified, because it vanished together with a node above it."""
    former: tuple[Permissions, ...] = ()
    """Permission lists in force before the change, whose readers may be notified, too."""


class View(Protocol):
    """Nodes as one caller sees them: the tree itself, or a transaction's private state of it."""

    changes: list[Change]
    """The changes so far, in order, until they are taken."""

    def find(self, path: bytes) -> Node | None:
        """Return the node that an operation is about."""

    def peek(self, path: bytes) -> Node | None:
        """Return a node that only decides how an operation is refused."""

    def rely(self, path: bytes) -> None:
        """Note that the answer to the caller depends on the result of `find`: the node, or its absence."""

    def listing(self, path: bytes) -> tuple[Iterable[bytes], int]:
        """Return the names below an existing node, and a number that changes whenever they do. Implies `rely`."""

    def children_bytes(self, path: bytes) -> int:
        """Return the bytes that the names below an existing node add to its size."""

    def owned_by(self, domid: int) -> int:
        """Return how many nodes a domain owns."""

    def create(self, path: bytes, node: Node) -> None:
        """Add a node that is not there, below a parent that is."""

    def replace(self, path: bytes, value: bytes, perms: Permissions) -> None:
        """Give an existing node another value or other permissions; its children stay."""

    def below(self, path: bytes) -> list[tuple[bytes, Node]]:
        """Return an existing node and all below it, parents before their children."""

    def remove(self, path: bytes) -> None:
        """Remove an existing node, not the root, and everything below it."""


def parent(path: bytes) -> bytes:
    """Return the path one level up; not for the root, which has none."""
    return path[: path.rindex(b"/")] or ROOT


def basename(path: bytes) -> bytes:
    """Return the last component of a path."""
    return path[path.rindex(b"/") + 1 :]


def child(path: bytes, name: bytes) -> bytes:
    """Return the path of a child."""
    return b"/" + name if path == ROOT else path + b"/" + name


def size(value: bytes, perms: Permissions, children_bytes: int) -> int:
    """Return the bytes that xenstored counts for a node."""
    return NODE_HEADER_BYTES + PERMISSION_BYTES * perms.count + len(value) + children_bytes


class Tree:
    """All nodes: the `View` that all callers share. Parents, children and owners' counts are always in step.

    No permission is checked here: `verbs` does that.
    """

    find: Callable[[bytes], Node | None]
    peek: Callable[[bytes], Node | None]

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.owned: dict[int, int] = {}
        self.changes: list[Change] = []
        self.find = self.peek = self.nodes.get
        self._generations = count(1)
        dom0 = permissions(((0, 0),))
        for path in (ROOT, INTRODUCE_DOMAIN, RELEASE_DOMAIN):
            self.put(path, Node(b"", dom0))
        self.create(b"/tool", Node(b"", dom0))
        self.create(b"/tool/xenstored", Node(b"", dom0))

    def rely(self, path: bytes) -> None:
        """Do nothing: a value read outside a transaction holds only for that moment."""

    def listing(self, path: bytes) -> tuple[Iterable[bytes], int]:
        """As `View.listing`. The names are live: use them at once."""
        children = self.nodes[path].children
        return (children.names, children.generation) if children is not None else ((), 0)

    def children_bytes(self, path: bytes) -> int:
        """As `View.children_bytes`."""
        children = self.nodes[path].children
        return children.size if children is not None else 0

    def owned_by(self, domid: int) -> int:
        """As `View.owned_by`."""
        return self.owned.get(domid, 0)

    def create(self, path: bytes, node: Node) -> None:
        """As `View.create`."""
        self.put(path, node)
        self.link(parent(path), (basename(path),), ())

    def replace(self, path: bytes, value: bytes, perms: Permissions) -> None:
        """As `View.replace`."""
        old = self.nodes[path]
        self.nodes[path] = Node(value, perms, old.children)
        if perms.owner != old.perms.owner:
            self._count(old.perms.owner, -1)
            self._count(perms.owner, 1)

    def below(self, path: bytes) -> list[tuple[bytes, Node]]:
        """As `View.below`."""
        return list(self._walk(path))

    def remove(self, path: bytes) -> None:
        """As `View.remove`."""
        for here, _ in self.below(path):
            self.drop(here)
        self.link(parent(path), (), (basename(path),))

    def put(self, path: bytes, node: Node) -> None:
        """Set a node, and leave it to the caller to update the parent."""
        old = self.nodes.get(path)
        self.nodes[path] = node
        self._count(node.perms.owner, 1)
        if old is not None:
            self._count(old.perms.owner, -1)

    def drop(self, path: bytes) -> None:
        """Delete one node, and leave it to the caller to update the parent and to delete the nodes below."""
        self._count(self.nodes.pop(path).perms.owner, -1)

    def link(self, path: bytes, added: Iterable[bytes], removed: Iterable[bytes]) -> None:
        """Change the names below an existing node: first remove, then add."""
        node = self.nodes[path]
        children = node.children
        if children is None:
            children = node.children = Children()
        names = children.names
        for name in removed:
            if name in names:
                del names[name]
                children.size -= len(name) + 1
        for name in added:
            if name not in names:
                names[name] = None
                children.size += len(name) + 1
        children.generation = next(self._generations)

    def _walk(self, path: bytes) -> Iterator[tuple[bytes, Node]]:
        waiting = [path]
        while waiting:
            here = waiting.pop()
            node = self.nodes[here]
            yield here, node
            if node.children is not None:
                waiting.extend(child(here, name) for name in reversed(node.children.names))

    def _count(self, domid: int, step: int) -> None:
        owned = self.owned.get(domid, 0) + step
        if owned:
            self.owned[domid] = owned
        else:
            del self.owned[domid]
