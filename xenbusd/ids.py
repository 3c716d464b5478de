"""The small integers and names by which Xen knows things.

Source: xen/include/public/xen.h (DOMID_*), grant_table.h (grant_ref_t), event_channel.h (evtchn_port_t).
"""

from typing import NewType

Domid = NewType("Domid", int)
"""A domain: 0 .. 0x7FEF; 0 is the first, privileged one."""

Devid = NewType("Devid", int)
"""A device's number in its class and frontend domain, decimal in the store; for vbd an encoded vdev (51712: xvda)."""

DeviceClass = NewType("DeviceClass", str)
"""A kind of device as the store spells it: "vbd", "vif", "vtpm", "echo"."""

Gref = NewType("Gref", int)
"""A grant reference: u32, an index into the granting domain's grant table."""

Port = NewType("Port", int)
"""An event channel port: u32, valid in one domain only."""

DOM0 = Domid(0)
DOMID_FIRST_RESERVED = 0x7FF0
"""Domids from here on name no domain (xen.h, DOMID_FIRST_RESERVED)."""

PAGE_SIZE = 4096
"""Bytes in a page: the unit of a grant (XC_PAGE_SIZE)."""
