"""How much of the store a domain may use, and the exception by which the store refuses more. Pure.

Source: tools/xenstore/xenstored_core.c, quota_*.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


class Refusal(Exception):
    """The store refuses a request; the errno's name goes into the ERROR packet.

    Args:
        code: a positive errno, one of xs_wire.h's xsd_errors.
    """

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode[code])
        self.code = code


@dataclass(frozen=True)
class Quotas:
    """The limits of an unprivileged domain. The defaults are xenstored's; domain 0 is exempt from all of them."""

    watches: int = 128
    """Watches registered."""
    nodes: int = 1000
    """Nodes owned."""
    node_bytes: int = 2048
    """Bytes that a node must stay below: header, permissions, value and the names of its children."""
    transactions: int = 10
    """Transactions open at once."""
    transaction_nodes: int = 1024
    """Nodes touched in one transaction."""
    permissions: int = 5
    """Entries of a permission list that the domain sets."""
    path_bytes: int = 2048
    """A path, not counting a leading /local/domain/<domid>/."""
    outstanding: int = 20
    """Requests whose answers wait to be taken; until then no more requests are read."""
    unsent_event_bytes: int = 1 << 20
    """Different watch events that wait to be taken; beyond this the connection is closed."""
