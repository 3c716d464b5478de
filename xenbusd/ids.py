"""The numbers and names by which Xen identifies domains, devices, grants and event channels. Pure.

Source: xen/include/public/xen.h (DOMID_*), grant_table.h (grant_ref_t), event_channel.h (evtchn_port_t).
"""

import re
from typing import NewType

Domid = NewType("Domid", int)
"""A domain's number, 0 .. 0x7FEF; domain 0 is the privileged one that Xen starts first."""

Devid = NewType("Devid", int)
"""A device's number, unique in its class and frontend domain; decimal in the store. For vbd it encodes the name of the
disk (51712: xvda)."""

DeviceClass = NewType("DeviceClass", str)
"""A kind of device, as spelt in the store: "vbd", "vif", "vtpm", "echo"; see `is_device_class`."""

Gref = NewType("Gref", int)
"""A grant reference: u32, an index into the grant table of the granting domain."""

Port = NewType("Port", int)
"""An event channel port: u32, valid in one domain only."""

DOM0 = Domid(0)
DOMID_FIRST_RESERVED = 0x7FF0
"""Numbers from here on are reserved: no domain has them (xen.h, DOMID_FIRST_RESERVED)."""

_DEVICE_CLASS = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)

PAGE_SIZE = 4096
"""Bytes in a page: the unit of a grant (XC_PAGE_SIZE)."""


def is_device_class(name: str) -> bool:
    """Whether a device class can have this name."""
    return _DEVICE_CLASS.fullmatch(name) is not None
