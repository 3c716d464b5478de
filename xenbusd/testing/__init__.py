"""For whoever writes a driver: a machine to run both ends on, an end to drive by hand, and faults to happen.

`xenbusd.testing.conformance` has what every pair must do, as tests; `xenbusd.testing.plugin` has fixtures for pytest.
"""

from xenbusd.bus.paths import DeviceId
from xenbusd.ids import Domid
from xenbusd.testing.faults import Faults
from xenbusd.testing.machine import Machine, Process
from xenbusd.testing.peer import HandRing, Peer

__all__ = ["DeviceId", "Domid", "Faults", "HandRing", "Machine", "Peer", "Process"]
