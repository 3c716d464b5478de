"""For authors of drivers: a machine to run both ends on, an end to drive by hand, and faults to inject.

`xenbusd.testing.checks` has the checks that every pair must pass, `xenbusd.testing.conformance` has these as pytest
tests, and `xenbusd.testing.plugin` has fixtures for pytest. Nothing else here needs pytest.
"""

from xenbusd.bus.paths import DeviceId
from xenbusd.ids import Domid
from xenbusd.testing.faults import Faults
from xenbusd.testing.machine import Machine, Process
from xenbusd.testing.peer import HandRing, Peer

__all__ = ["DeviceId", "Domid", "Faults", "HandRing", "Machine", "Peer", "Process"]
