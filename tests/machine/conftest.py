"""What tests of both ends get: a simulated machine of their own, and what was logged."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog

from tests.machine.echo import Half, half
from xenbusd.testing import Machine


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    """A machine with nothing but domain 0; its folder has a short name, as paths of UNIX sockets must."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder:
        async with Machine(folder) as machine:
            yield machine


@pytest.fixture
async def echo(machine: Machine) -> Half:
    """An echo backend and a hand-driven frontend, attached and not yet connected."""
    return await half(machine)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """The log lines of the test, as dictionaries, instead of on stderr."""
    with structlog.testing.capture_logs() as entries:
        yield entries
