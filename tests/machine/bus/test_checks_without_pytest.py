"""The conformance check runs where pytest cannot be imported: `pip install xenbusd` is enough for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[3] / "drivers/xenbusd_echo/README.md"

PROGRAM = """
import asyncio, sys


class NoPytest:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytest", "_pytest", "pytest_asyncio", "pluggy", "hypothesis"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoPytest())

from pathlib import Path

from xenbusd.testing.checks import PairChecks, cases, check_pair
from xenbusd_echo.backend import EchoBackend
from xenbusd_echo.frontend import EchoFrontend


class Check(PairChecks):
    backend, frontend, readme = EchoBackend, EchoFrontend, Path(sys.argv[1])

    async def use(self, guest, id):
        reader, writer = await asyncio.open_unix_connection(guest.run_path(id, "sock"))
        writer.write(b"hello\\n")
        assert await reader.readline() == b"HELLO\\n", "no answer"
        writer.close()


for case in cases(Check):
    print(case.name)
    if case.name in sys.argv[2:]:
        asyncio.run(case.run())
        print("passed")
"""


def run(readme: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """List all cases, and run some."""
    command = [sys.executable, "-c", PROGRAM, str(readme), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_cases_run() -> None:
    """One of an honest pair, one of misfortune and one of malice; all are listed."""
    chosen = ("connects_works_and_leaves_nothing", "watches_are_late[1]", "mad_states_harm_nobody[frontend]")
    done = run(README, *chosen)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [lines[lines.index(name) + 1] for name in chosen] == ["passed"] * 3
    assert "process_dies_at_each_step[handshake-backend]" in lines
    assert len(lines) - 3 == 27


def test_a_pair_that_does_not_conform_fails(tmp_path: Path) -> None:
    """A README without a table of keys: the assertion says which keys are missing."""
    readme = tmp_path / "README.md"
    readme.write_text("# Nothing\n")
    done = run(readme, "keys_are_those_of_the_readme")
    assert done.returncode == 1
    assert "written, but not documented: feature-upper" in done.stderr
