"""The drivers' interface: the only module of xenbusd that a driver imports.

A driver is two classes, one for each end, in a package of its own, named by entry points of the group
`xenbusd.drivers`. `xenbusd_echo` is the template.

Decision: D43.
"""

from xenbusd.bus.backend import BackendDevice
from xenbusd.bus.counters import Counter, Histogram
from xenbusd.bus.driver import API_VERSION, Backend, Directories, Frontend, ScriptCall
from xenbusd.bus.finding import Finding, Nodes
from xenbusd.bus.frontend import FrontendDevice
from xenbusd.bus.handover import AfterCleanStop, InOrder, JournalPolicy
from xenbusd.bus.link import BackLink, FrontLink, Rings
from xenbusd.bus.nodes import NodeType, boolean, choice, text, unsigned
from xenbusd.bus.page import BackPage, PageLink
from xenbusd.bus.state import Seen, State
from xenbusd.errors import (
    ConnectionEnded,
    DriverError,
    EventChannelError,
    GrantError,
    LocalProtocolError,
    NodeValueError,
    OtherendError,
    OtherendTimeout,
    ResourceError,
    RingError,
    UsageError,
    XenbusdError,
)
from xenbusd.grants.cache import GrantCache
from xenbusd.grants.copies import CopyBatch
from xenbusd.grants.pool import PagePool
from xenbusd.host.address import address_of
from xenbusd.host.interface import Copy, Grants, Mapping, Share
from xenbusd.ids import PAGE_SIZE, Devid, Domid, Gref, Port
from xenbusd.process.child import Child, child_environ
from xenbusd.process.listener import Listener
from xenbusd.process.lock import once_unlocked
from xenbusd.rate import RateLimit
from xenbusd.ring.batching import BatchSize
from xenbusd.ring.layout import Raw, RingFormat, Slot
from xenbusd.ring.polling import BusyPoll
from xenbusd.ring.shared import BackRing, FrontRing
from xenbusd.schema import Option, Schema, absolute_path, integer, one_of, true_or_false

__all__ = [
    "API_VERSION",
    "PAGE_SIZE",
    "AfterCleanStop",
    "BackLink",
    "BackPage",
    "BackRing",
    "Backend",
    "BackendDevice",
    "BatchSize",
    "BusyPoll",
    "Child",
    "ConnectionEnded",
    "Copy",
    "CopyBatch",
    "Counter",
    "Devid",
    "Directories",
    "Domid",
    "DriverError",
    "EventChannelError",
    "Finding",
    "FrontLink",
    "FrontRing",
    "Frontend",
    "FrontendDevice",
    "GrantCache",
    "GrantError",
    "Grants",
    "Gref",
    "Histogram",
    "InOrder",
    "JournalPolicy",
    "Listener",
    "LocalProtocolError",
    "Mapping",
    "NodeType",
    "NodeValueError",
    "Nodes",
    "Option",
    "OtherendError",
    "OtherendTimeout",
    "PageLink",
    "PagePool",
    "Port",
    "RateLimit",
    "Raw",
    "ResourceError",
    "RingError",
    "RingFormat",
    "Rings",
    "Schema",
    "ScriptCall",
    "Seen",
    "Share",
    "Slot",
    "State",
    "UsageError",
    "XenbusdError",
    "absolute_path",
    "address_of",
    "boolean",
    "child_environ",
    "choice",
    "integer",
    "once_unlocked",
    "one_of",
    "text",
    "true_or_false",
    "unsigned",
]
