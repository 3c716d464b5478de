"""Both real ends of a device, in any interleaving of steps and faults: they never wait for each other for ever."""

from __future__ import annotations

from hypothesis import settings

from tests.doubles.handshake_machine import HandshakeMachine

TestHandshake = HandshakeMachine.TestCase
TestHandshake.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
