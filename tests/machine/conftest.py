"""Fixtures for tests of both ends: those that authors of drivers get, too, and an echo."""

from __future__ import annotations

import pytest

from tests.doubles.echo import Half, half
from xenbusd.testing import Machine
from xenbusd.testing.plugin import logged, machine

__all__ = ["echo", "logged", "machine"]


@pytest.fixture
async def echo(machine: Machine) -> Half:
    """An echo backend and a hand-driven frontend, attached and not yet connected."""
    return await half(machine)
