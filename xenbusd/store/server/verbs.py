"""The acts of a domain on nodes, in the tree or in a transaction, with checks of permissions and quotas. Pure.

Each function either raises `Refusal` before it has changed anything, or does the whole act and records a `Change`.

Source: tools/xenstore/xenstored_core.c (get_node, errno_from_parents, do_write, do_mkdir, do_rm, do_set_perms).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from xenbusd.store.server.domains import Domain
from xenbusd.store.server.permissions import OWN, READ, WRITE, Permissions
from xenbusd.store.server.quotas import Refusal
from xenbusd.store.server.tree import ROOT, Change, Node, View, basename, parent, size


def read(view: View, domain: Domain, path: bytes) -> bytes:
    """Return a node's value."""
    node = _existing(view, domain, path, READ)
    view.rely(path)
    return node.value


def directory(view: View, domain: Domain, path: bytes) -> tuple[Iterable[bytes], int]:
    """Return the names of a node's children, and a number that changes whenever they do."""
    _existing(view, domain, path, READ)
    view.rely(path)
    return view.listing(path)


def get_perms(view: View, domain: Domain, path: bytes) -> Permissions:
    """Return a node's permissions."""
    node = _existing(view, domain, path, READ)
    view.rely(path)
    return node.perms


def write(view: View, domain: Domain, path: bytes, value: bytes) -> None:
    """Set a node's value; make the node, and those above it, if they do not exist."""
    node = _reach(view, domain, path, WRITE)
    if node is None:
        _create(view, domain, path, value)
    else:
        if not domain.privileged:
            _check_size(domain, value, node.perms, view.children_bytes(path))
        view.replace(path, value, node.perms)
    view.changes.append(Change(path))


def mkdir(view: View, domain: Domain, path: bytes) -> None:
    """Make a node, and those above it; one that exists is left as it is."""
    if _reach(view, domain, path, WRITE) is None:
        _create(view, domain, path, b"")
        view.changes.append(Change(path))


def rm(view: View, domain: Domain, path: bytes) -> None:
    """Remove a node and everything below it. A missing node is no error if its parent exists."""
    node = _reach(view, domain, path, WRITE)
    if path == ROOT:
        raise Refusal(errno.EINVAL)
    if node is None:
        if view.find(parent(path)) is None:
            view.rely(parent(path))
            raise Refusal(errno.ENOENT)
        return
    remove(view, path)


def remove(view: View, path: bytes) -> None:
    """Remove an existing node and everything below it, without a check of permissions, and record the changes."""
    # A transaction may have the node while its parent has been removed outside the transaction.
    above = view.find(parent(path))
    doomed = view.below(path)
    perms = {here: node.perms for here, node in doomed}
    view.remove(path)
    view.changes.append(Change(path, False, (perms[path], *((above.perms,) if above else ()))))
    for here, node in doomed[1:]:
        view.changes.append(Change(here, True, (node.perms, perms[parent(here)])))


def set_perms(view: View, domain: Domain, path: bytes, perms: Permissions) -> None:
    """Give a node other permissions. Only its owner may, and only domain 0 may make somebody else the owner."""
    if not domain.privileged and perms.count > domain.quotas.permissions:
        raise Refusal(errno.ENOSPC)
    node = _existing(view, domain, path, WRITE | OWN)
    if not domain.privileged:
        if perms.owner != node.perms.owner:
            raise Refusal(errno.EPERM)
        _check_size(domain, node.value, perms, view.children_bytes(path))
    view.replace(path, node.value, perms)
    if path.startswith(ROOT):
        # The special nodes are no nodes to their watchers.
        view.changes.append(Change(path, False, (node.perms,)))


def _existing(view: View, domain: Domain, path: bytes, need: int) -> Node:
    node = _reach(view, domain, path, need)
    if node is None:
        view.rely(path)
        raise Refusal(errno.ENOENT)
    return node


def _reach(view: View, domain: Domain, path: bytes, need: int) -> Node | None:
    """Return the node, or None if it is missing and the domain may know that.

    Raises:
        Refusal: EACCES: the rights in `need` are not all there; or the node is missing and the nearest one above
            it grants none of them.
    """
    node = view.find(path)
    if domain.privileged:
        return node
    if node is not None:
        if domain.allow(node.perms) & need != need:
            view.rely(path)
            raise Refusal(errno.EACCES)
        return node
    above = None
    while above is None and path != ROOT and path.startswith(ROOT):
        path = parent(path)
        above = view.peek(path)
    if above is None or not domain.allow(above.perms) & need:
        view.rely(path)
        raise Refusal(errno.EACCES)
    return None


def _create(view: View, domain: Domain, path: bytes, value: bytes) -> None:
    missing = [path]
    above = parent(path)
    while (base := view.find(above)) is None:
        missing.append(above)
        above = parent(above)
    perms = base.perms  # a new node inherits its parent's; an unprivileged creator becomes the owner (T10)
    if not domain.privileged:
        perms = perms.owned_by(domain.domid)
        if view.owned_by(domain.domid) + len(missing) > domain.quotas.nodes:
            raise Refusal(errno.ENOSPC)
        _check_size(domain, value, perms, 0)
        below = len(basename(missing[-1])) + 1
        _check_size(domain, base.value, base.perms, view.children_bytes(above) + below)
        for here in missing[:-1]:
            _check_size(domain, b"", perms, len(basename(here)) + 1)
    for here in reversed(missing):
        view.create(here, Node(value if here is path else b"", perms))


def _check_size(domain: Domain, value: bytes, perms: Permissions, children_bytes: int) -> None:
    if size(value, perms, children_bytes) >= domain.quotas.node_bytes:
        raise Refusal(errno.ENOSPC)
