"""Stand-ins for qemu-nbd and qemu-img that do what a test says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

SERVER = """
import os, signal, socket, sys
{before}
at = next(word.removeprefix("--socket=") for word in sys.argv if word.startswith("--socket="))
listener = socket.socket(socket.AF_UNIX)
listener.bind(at)
listener.listen()
while True:
    client, _ = listener.accept()
    client.sendall({greeting!r})
    client.recv(4, socket.MSG_WAITALL)
    for answer in {answers!r}:
        head = client.recv(4096)
        client.sendall(answer)
    {after}
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, program: str) -> None:
    """Put a Python program into a folder that is first in PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable} -IS\n{program}")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def qemu_img(answers: dict[str, dict[str, object]]) -> str:
    """A qemu-img that knows these images, by path, and calls all others broken."""
    return f"""
import json, sys
answers = json.loads({json.dumps(answers)!r})
for path, answer in answers.items():
    if sys.argv[-1].endswith("file.filename=" + path):
        print(json.dumps(answer))
        sys.exit()
sys.exit("qemu-img: Could not open it: Image is not in that format")
"""
