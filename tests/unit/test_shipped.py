"""xenbusd.shipped: the same folders, from a source tree and from a wheel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenbusd import shipped
from xenbusd.shipped import shipped_dir

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["hotplug", "systemd"])
def test_of_a_source_tree(name: str) -> None:
    """In a source tree they are beside the package."""
    assert shipped_dir(name) == str(ROOT / name)
    assert os.listdir(shipped_dir(name))


def test_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wheel they are inside the package, and what happens to be beside it is not taken for ours."""
    package = tmp_path / "site-packages" / "xenbusd"
    (package / "_shipped" / "hotplug").mkdir(parents=True)
    (package.parent / "hotplug").mkdir()
    monkeypatch.setattr(shipped, "_PACKAGE", str(package))
    assert shipped_dir("hotplug") == str(package / "_shipped" / "hotplug")
