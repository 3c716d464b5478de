"""Fixtures for the tests of `xenbusd install`: a machine made of a folder, and a store with devices."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.folder_machine import FolderMachine
from xenbusd.install import in_use, this_machine
from xenbusd.store.endpoint import unix_endpoint
from xenbusd.testing.processes import ProcessMachine
from xenbusd.testing.processes import machine as processes


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderMachine:
    """A Debian dom0 with systemd, on which this process is root."""
    machine = FolderMachine(tmp_path)
    monkeypatch.setattr(this_machine, "ROOT", str(tmp_path))
    monkeypatch.setattr(in_use, "store_endpoint", lambda: unix_endpoint(str(tmp_path / "no-store")))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{machine.bin}:{os.environ['PATH']}")
    return machine


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessMachine]:
    """A host's store, in the place of this machine's."""
    with tempfile.TemporaryDirectory(prefix="xb") as folder, processes(Path(folder)) as host:
        monkeypatch.setattr(in_use, "store_endpoint", lambda: unix_endpoint(host.store))
        yield host
