"""docs/writing-a-driver.md, followed step by step: its files are written, its commands run and print what it shows."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

DOCUMENT = Path(__file__).parents[3] / "docs/writing-a-driver.md"
PATIENCE_S = 20.0
COMMANDS = {"pip": "pip", "pytest": "pytest", "xenbusctl": "xenbusd.cli.ctl", "xenbusd": "xenbusd"}
"""Commands that the document uses, and the modules that they run."""

pytestmark = [
    pytest.mark.skipif(shutil.which("socat") is None, reason="socat is missing (Debian: socat)"),
    pytest.mark.skipif(
        None in map(importlib.util.find_spec, ("hatchling", "editables")),
        reason="hatchling or editables is missing: `make setup` installs them",
    ),
]


class Block(NamedTuple):
    """A fenced block: what stands behind the backquotes, what is between them, and the line where it begins."""

    kind: str
    text: str
    line: int


def blocks() -> list[Block]:
    """All blocks of the document, in order."""
    text = DOCUMENT.read_text()
    found = re.finditer(r"^(`{3,})([^\n]*)\n(.*?)^\1$", text, re.M | re.S)
    return [Block(match[2], match[3], text.count("\n", 0, match.start()) + 1) for match in found]


class Shell:
    """A shell in which one command is run after the other, as a reader types them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """Run one command; return what it prints."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\necho END-OF-COMMAND $?\n")
        self._bash.stdin.flush()
        lines = []
        while not (line := self._bash.stdout.readline()).startswith("END-OF-COMMAND"):
            assert line, f"the shell has gone; it said {lines}"
            lines.append(line)
        self._wait_for_daemon(command)
        return "".join(lines)

    def _wait_for_daemon(self, command: str) -> None:
        """A person takes a moment before the next command; wait until what was started in the background answers."""
        sockets = {"xenbusd sim": "host.store", "xenbusd serve": "host.dom0/control.sock"}
        sockets["xenbusd agent"] = "host.dom1/control.sock"
        for program, path in sockets.items():
            if command.startswith(program):
                deadline = time.monotonic() + PATIENCE_S
                while not list(self.folder.glob(f"*/{path}")):
                    logs = "".join(log.read_text() for log in self.folder.glob("*/*.log"))
                    assert time.monotonic() < deadline, f"{command} does not answer: {logs}"
                    time.sleep(0.02)

    def close(self) -> None:
        """End the shell and all that runs in its background."""
        os.killpg(self._bash.pid, signal.SIGTERM)
        self._bash.communicate()


def _environment(folder: Path) -> dict[str, str]:
    """A virtual environment for the reader, which also has what this one has; pip in it does without a network."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "beside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for command, module in COMMANDS.items():
        path = venv / "bin" / command
        path.write_text(f"#!{venv}/bin/python\nimport runpy\nrunpy.run_module({module!r}, run_name='__main__')\n")
        path.chmod(0o755)
    (folder / "pip.conf").write_text(
        "[global]\nno-index = true\ndisable-pip-version-check = true\n"
        "[install]\nno-build-isolation = false\nno-deps = true\nroot-user-action = ignore\n"
    )
    return {
        **os.environ,
        "PATH": f"{venv}/bin:{os.environ['PATH']}",
        "PIP_CONFIG_FILE": str(folder / "pip.conf"),
        "COLUMNS": "120",
    }


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in an empty folder."""
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def as_shown(shown: str) -> re.Pattern[str]:
    """A pattern for output as the document shows it: "..." is anything, on a line of its own also nothing."""
    lines = [
        r"(.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.rstrip().split("..."))) + r" *\n"
        for line in shown.splitlines()
    ]
    return re.compile("".join(lines) or r"\Z")


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def test_the_document_is_true(shell: Shell) -> None:
    """From the empty folder to the simulated host: each block in its turn."""
    done = {"files": 0, "commands": 0}
    for block in blocks():
        language, _, path = block.kind.partition(" ")
        if block.kind == "console":
            for command, shown in commands(block.text):
                output = shell.run(command)
                assert as_shown(shown).fullmatch(output), f"line {block.line}, $ {command}\n{output}"
                done["commands"] += 1
        elif path and path != "on-xen":
            file = shell.folder / "xenbusd-tally" / path
            assert file.parent.is_dir(), f"line {block.line}: {path} is nowhere"
            file.write_text(block.text)
            done["files"] += 1
        else:
            assert language in ("text", "toml", "console"), f"line {block.line}: a block that nobody checks"
    assert done["files"] >= 7
    assert done["commands"] >= 15


def test_the_entry_points_are_the_generated_ones(shell: Shell) -> None:
    """What the document shows of pyproject.toml stands in the generated one."""
    shell.run("xenbusctl new-driver tally")
    (shown,) = (block.text for block in blocks() if block.kind == "toml")
    assert shown in (shell.folder / "xenbusd-tally/pyproject.toml").read_text()


def test_its_links_lead_somewhere() -> None:
    """Files and headings that are linked to are there."""
    text = DOCUMENT.read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    headings = {
        re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^##+ (.*)$", text, re.M)
    }
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings
        else:
            assert (DOCUMENT.parent / link).exists(), link
