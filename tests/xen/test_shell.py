"""`make xen-shell`, used as a person would use it, through a pipe."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.xen import build

pytestmark = pytest.mark.outside

PROMPT = rb"dom0:\S+# "


class Terminal:
    """The program, and what it has shown so far."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.xen.shell"],
            cwd=build.TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
        )  # fmt: skip
        self._shown = b""

    def wait_for(self, pattern: bytes, timeout_s: float = 60.0) -> bytes:
        """Read on until something shown matches; return all up to there."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not (found := re.search(pattern, self._shown)):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                more = os.read(self._process.stdout.fileno(), 65536) if ready else b""
                assert more, f"no {pattern!r} in time; it showed: {self._shown.decode(errors='replace')}"
                self._shown += more
        shown, self._shown = self._shown[: found.end()], self._shown[found.end() :]
        return shown

    def type(self, line: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def run(self, command: str) -> str:
        """Type a command, and return what it shows, its own echo first."""
        self.type(command)
        return self.wait_for(PROMPT).decode(errors="replace")

    def wait_ended(self) -> int:
        """Wait until the machine is off; return the exit status."""
        return self._process.wait(60)

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A developer's terminal."""
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_shell_in_dom0(terminal: Terminal) -> None:
    """It comes, has Xen's tools and ours, sees an edit of the work tree, and switches the machine off."""
    terminal.wait_for(PROMPT, 300)  # the image may have to be built first
    assert "Domain-0" in terminal.run("xl list")
    assert "Usage: xenbusctl" in terminal.run("xenbusctl --help")
    edit = build.TREE / "tests" / "xen" / "__pycache__" / "edit"
    edit.parent.mkdir(exist_ok=True)
    edit.write_text("made outside\n")
    try:
        assert "made outside" in terminal.run("cat /mnt/tree/tests/xen/__pycache__/edit")
    finally:
        edit.unlink()
    terminal.type("xenbusd serve &")
    terminal.wait_for(rb"daemon\.started")
    assert "no devices" in terminal.run("xenbusctl list")
    terminal.type("exit")
    assert terminal.wait_ended() == 0
