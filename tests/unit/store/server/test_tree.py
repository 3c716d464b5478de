"""The tree: parents, children and owners' counts stay in step."""

from __future__ import annotations

from xenbusd.store.server.permissions import Permissions, parse_permissions
from xenbusd.store.server.tree import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Node, Tree, basename, child, parent, size

DOM0 = parse_permissions([b"n0"])
DOM3 = parse_permissions([b"n3", b"r0"])


def tree_of(*paths: bytes, perms: Permissions = DOM0) -> Tree:
    """A tree with these nodes, parents first."""
    tree = Tree()
    for path in paths:
        tree.create(path, Node(b"", perms))
    return tree


def listed(tree: Tree, path: bytes) -> list[bytes]:
    """The names below a node."""
    return list(tree.listing(path)[0])


def test_paths_are_taken_apart_and_put_together() -> None:
    """The root is a parent like any other."""
    assert [parent(b"/a"), parent(b"/a/b")] == [b"/", b"/a"]
    assert [child(b"/", b"a"), child(b"/a", b"b")] == [b"/a", b"/a/b"]
    assert basename(b"/a/b") == b"b"


def test_a_new_store_holds_what_xenstored_s_holds() -> None:
    """The root with /tool/xenstored, and the special nodes, all domain 0's."""
    tree = Tree()
    assert set(tree.nodes) == {b"/", b"/tool", b"/tool/xenstored", INTRODUCE_DOMAIN, RELEASE_DOMAIN}
    assert tree.owned == {0: 5}


def test_children_are_listed_in_the_order_in_which_they_came() -> None:
    """A name that goes and comes again is the last."""
    tree = tree_of(b"/a", b"/a/x", b"/a/y")
    assert listed(tree, b"/a") == [b"x", b"y"]
    tree.remove(b"/a/x")
    tree.create(b"/a/x", Node(b"", DOM0))
    assert listed(tree, b"/a") == [b"y", b"x"]
    assert tree.children_bytes(b"/a") == 4


def test_removing_takes_everything_below() -> None:
    """Nothing of the subtree stays, and a node made there again has no children."""
    tree = tree_of(b"/a", b"/a/b", b"/a/b/c", b"/ab")
    tree.remove(b"/a")
    assert [path for path in tree.nodes if path.startswith(b"/a")] == [b"/ab"]
    tree.create(b"/a", Node(b"", DOM0))
    assert listed(tree, b"/a") == []


def test_below_yields_parents_before_children_in_order() -> None:
    """The order in which events of removed nodes are sent."""
    tree = tree_of(b"/a", b"/a/x", b"/a/y", b"/a/x/1")
    assert [path for path, _ in tree.below(b"/a")] == [b"/a", b"/a/x", b"/a/x/1", b"/a/y"]


def test_owned_nodes_are_counted() -> None:
    """Making, giving away and removing change the count; an owner of nothing is not kept."""
    tree = tree_of(b"/a", b"/a/b", perms=DOM3)
    assert tree.owned_by(3) == 2
    tree.replace(b"/a/b", b"", DOM0)
    assert tree.owned_by(3) == 1
    tree.remove(b"/a")
    assert 3 not in tree.owned
    assert tree.owned_by(0) == 5


def test_a_write_makes_another_node_of_the_same_children() -> None:
    """What a transaction has seen stays as it was."""
    tree = tree_of(b"/a", b"/a/b")
    before = tree.nodes[b"/a"]
    tree.replace(b"/a", b"new", DOM0)
    assert (before.value, tree.nodes[b"/a"].value) == (b"", b"new")
    assert listed(tree, b"/a") == [b"b"]


def test_the_generation_of_a_listing_changes_with_the_names_alone() -> None:
    """DIRECTORY_PART's reader begins again when it does, and only then."""
    tree = tree_of(b"/a", b"/a/b")
    generations = [tree.listing(b"/a")[1]]
    tree.replace(b"/a", b"new", DOM0)
    assert tree.listing(b"/a")[1] == generations[0]
    tree.create(b"/a/c", Node(b"", DOM0))
    generations.append(tree.listing(b"/a")[1])
    tree.remove(b"/a/c")
    generations.append(tree.listing(b"/a")[1])
    assert len(set(generations)) == 3


def test_a_node_s_size_is_what_xenstored_counts() -> None:
    """A header of 24, 8 for each permission, the value, the names."""
    assert size(b"abc", DOM3, 10) == 24 + 16 + 3 + 10
