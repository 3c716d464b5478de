"""pytest fixtures for drivers' tests. In a package's pyproject.toml: `addopts = ["-p", "xenbusd.testing.plugin"]`.

Decision: D29.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from xenbusd.testing.machine import Machine

if "xenbusd.testing.checks" not in sys.modules:
    pytest.register_assert_rewrite("xenbusd.testing.checks")


@pytest_asyncio.fixture
async def machine() -> AsyncIterator[Machine]:
    """A simulated machine with nothing but domain 0; its folder has a short name, since paths of UNIX sockets must be
    short."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder:
        async with Machine(folder) as machine:
            yield machine


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """The log lines of the test as dictionaries; they are not written to stderr."""
    with capture_logs() as entries:
        yield entries
