"""How much a domain may use of the store, and the way the store says no. Pure.

Source: tools/xenstore/xenstored_core.c, quota_*.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


class Refusal(Exception):
    """The store says no; the errno's name goes into the ERROR packet.

    Args:
        code: a positive errno, one of xs_wire.h's xsd_errors.
    """

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode[code])
        self.code = code


@dataclass(frozen=True)
class Quotas:
    """What an unprivileged domain may use. The defaults are xenstored's; domain 0 is exempt from all of them."""

    watches: int = 128
    """Watches registered."""
    nodes: int = 1000
    """Nodes owned."""
    node_bytes: int = 2048
    """A node stays below this: header, permissions, value and the names of its children."""
    transactions: int = 10
    """Transactions open at once."""
    transaction_nodes: int = 1024
    """Nodes touched in one transaction."""
    permissions: int = 5
    """Entries of a permission list that the domain sets."""
    path_bytes: int = 2048
    """A path, not counting a leading /local/domain/<domid>/."""
    outstanding: int = 20
    """Requests whose answers wait to be taken; more are not looked at until then."""
    unsent_event_bytes: int = 1 << 20
    """Different watch events that wait to be taken; beyond this the connection is closed."""
