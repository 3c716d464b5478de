"""The nodes that a toolstack writes for a domain, and removes after its death. Pure: no I/O here.

Source: tools/libs/light/libxl_create.c (libxl__domain_make), libxl_domain.c (devices_destroy_cb).
"""

from __future__ import annotations

from typing import NamedTuple


class Node(NamedTuple):
    """A node to write. The first permission names its owner."""

    path: str
    value: str
    perms: list[str]


def domain_nodes(domid: int, vm: str) -> list[Node]:
    """The nodes that are in the store before a guest begins to run, parents first.

    Args:
        domid: 1 or higher.
        vm: a UUID; Xen's stock hotplug scripts look for `vm` and `name`.
    """
    home = f"/local/domain/{domid}"
    readable = ["n0", f"r{domid}"]
    its_own = [f"n{domid}"]
    name = f"sim-{domid}"
    return [
        Node(f"/vm/{vm}", "", readable),
        Node(f"/vm/{vm}/name", name, readable),
        Node(f"/vm/{vm}/uuid", vm, readable),
        Node(f"/libxl/{domid}", "", ["n0"]),
        Node(f"/libxl/{domid}/device", "", ["n0"]),
        Node(home, "", readable),
        Node(f"{home}/vm", f"/vm/{vm}", readable),
        Node(f"{home}/name", name, readable),
        Node(f"{home}/domid", str(domid), readable),
        Node(f"{home}/device", "", readable),
        Node(f"{home}/control", "", readable),
        Node(f"{home}/control/shutdown", "", its_own),
        Node(f"{home}/data", "", its_own),
        Node(f"{home}/drivers", "", its_own),
        Node(f"{home}/error", "", its_own),
    ]


def dom0_nodes() -> list[Node]:
    """The nodes that are in the store for the first domain (tools/helpers/init-xenstore-domain.c, xen-init-dom0.c)."""
    home = "/local/domain/0"
    return [
        Node(home, "", ["n0"]),
        Node(f"{home}/domid", "0", ["n0"]),
        Node(f"{home}/name", "Domain-0", ["n0"]),
        Node(f"{home}/backend", "", ["n0"]),
    ]


def domain_roots(domid: int, vm: str) -> list[str]:
    """The subtrees that go when a domain is destroyed. Backend directories stay: they belong to other domains."""
    return [f"/vm/{vm}", f"/local/domain/{domid}", f"/libxl/{domid}"]
