"""xenbusd.cli.install: options that exclude each other."""

from __future__ import annotations

from pathlib import Path

from tests.doubles.folder_machine import invoke


def test_what_does_not_go_together(tmp_path: Path) -> None:
    """Options that contradict each other are refused, and nothing is installed."""
    result = invoke("install", "--root", str(tmp_path), "--agent", "--mode", "arbiter")
    assert result.exit_code == 2
    assert "--mode is about Linux's backends" in result.output
    result = invoke("install", "--root", str(tmp_path), "--now")
    assert result.exit_code == 2
    assert "--now starts the service on this machine" in result.output
    assert list(tmp_path.iterdir()) == []
