"""The TPM pair passes the conformance suite for driver pairs."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.doubles import tpm
from tests.doubles.tpm import GET_RANDOM, STARTUP, ask, result
from xenbusd.bus.paths import DeviceId
from xenbusd.testing import Process
from xenbusd.testing.conformance import PairConformance
from xenbusd_vtpm.backend import VtpmBackend
from xenbusd_vtpm.frontend import VtpmFrontend

PATIENCE_S = 5.0
"""How long a use may take before it counts as one that did not work, and is tried again where that is allowed."""


@pytest.fixture(scope="module", autouse=True)
def _state_dir() -> Iterator[None]:
    """A folder for the TPMs, which are made once."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder:
        TestVtpm.options = {"vtpm": {"vtpmx": False, "state_dir": folder}}
        yield


@pytest.mark.skipif(tpm.lacking() is not None, reason=tpm.lacking() or "")
class TestVtpm(PairConformance):
    """A TPM for each device; those that were made once are there for all tests."""

    backend, frontend = VtpmBackend, VtpmFrontend
    readme = Path(__file__).parents[3] / "drivers/xenbusd_vtpm/README.md"
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"vtpm": {"vtpmx": False}}

    def parameters(self, folder: Path) -> Mapping[str, str]:
        """A uuid for each device, the same in each test."""
        return {"uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, folder.name))}

    async def use(self, guest: Process, id: DeviceId) -> None:
        """Start it up, and have it make a number."""
        async with asyncio.timeout(PATIENCE_S):
            started, number = await ask(guest, id, STARTUP, GET_RANDOM)
        assert result(started) in ("00000000", "00000100")  # TPM_RC_INITIALIZE: it was already
        assert result(number) == "00000000"
