"""For whoever writes a driver or tests one: a machine to run both ends on, and an end to drive by hand."""

from xenbusd.testing.machine import Machine, Process
from xenbusd.testing.peer import HandRing, Peer

__all__ = ["HandRing", "Machine", "Peer", "Process"]
