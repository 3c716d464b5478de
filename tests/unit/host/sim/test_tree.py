"""The nodes in the store that belong to a domain."""

from __future__ import annotations

from xenbusd.host.sim.tree import dom0_nodes, domain_nodes, domain_roots

VM = "0e7d3d12-0000-4000-8000-000000000003"


def test_permissions_are_libxls() -> None:
    """A guest may read its home and its device folder, and owns what it is meant to write (libxl__domain_make)."""
    perms = {node.path: node.perms for node in domain_nodes(3, VM)}
    home = "/local/domain/3"
    for readable in (home, f"{home}/device", f"{home}/control", f"{home}/domid", f"{home}/name"):
        assert perms[readable] == ["n0", "r3"]
    for own in (f"{home}/data", f"{home}/error", f"{home}/control/shutdown"):
        assert perms[own] == ["n3"]
    assert perms["/libxl/3/device"] == ["n0"]


def test_parents_come_first() -> None:
    """Writing the nodes in order never makes one whose parent comes later and would change its permissions."""
    for nodes in (domain_nodes(3, VM), dom0_nodes()):
        paths = [node.path for node in nodes]
        for number, path in enumerate(paths):
            assert not [later for later in paths[number:] if path.startswith(later + "/")]


def test_everything_goes_with_the_domain() -> None:
    """Each node that is written lies in a subtree that is removed."""
    roots = domain_roots(3, VM)
    for node in domain_nodes(3, VM):
        assert any(node.path == root or node.path.startswith(root + "/") for root in roots)


def test_hotplug_scripts_find_name_and_uuid() -> None:
    """`vm` leads to a node with `name` and `uuid`, as Xen's stock scripts want."""
    values = {node.path: node.value for node in domain_nodes(3, VM)}
    vm = values["/local/domain/3/vm"]
    assert values[f"{vm}/uuid"] == VM
    assert values[f"{vm}/name"] == values["/local/domain/3/name"]
