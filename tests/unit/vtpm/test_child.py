"""Programs that run for us."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from xenbusd_vtpm.child import OUTPUT_MAX, Child


async def test_end_and_output(tmp_path: Path) -> None:
    """Its status is known once it has ended, and what it said, in its folder and with what it inherits."""
    reading, writing = os.pipe()
    script = f"pwd; echo second >&2; echo inherited >/proc/self/fd/{writing}; exit 3"
    child = Child(["sh", "-c", script], cwd=str(tmp_path), pass_fds=[writing])
    assert child.status is None
    await child.finish(20.0)
    assert (child.status, child.said) == (3, f"{tmp_path}; second")
    assert os.read(reading, 100) == b"inherited\n"
    await child.finish(20.0)
    os.close(reading)
    os.close(writing)


async def test_only_the_end_of_much_output_is_kept(tmp_path: Path) -> None:
    """Whoever prints without end is neither kept waiting nor kept in memory."""
    child = Child(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo end"], cwd=str(tmp_path))
    await child.finish(20.0)
    assert child.status == 0
    assert len(child.said) < OUTPUT_MAX
    assert child.said.endswith("xxend")


async def test_killed_when_time_is_up(tmp_path: Path) -> None:
    """Whoever does not end is killed."""
    child = Child(["sleep", "1000"], cwd=str(tmp_path))
    await child.finish(0.01)
    assert child.status == -9
    assert child.ended.is_set()


async def test_killed_with_its_children(tmp_path: Path) -> None:
    """What it has started itself ends with it: nobody holds the pipe any more."""
    reading, writing = os.pipe()
    script = f"sleep 1000 & echo started >/proc/self/fd/{writing}; wait"
    child = Child(["sh", "-c", script], cwd=str(tmp_path), pass_fds=[writing])
    os.close(writing)
    async with asyncio.timeout(20):
        assert await asyncio.to_thread(os.read, reading, 100) == b"started\n"
        await child.finish(0.0)
        assert await asyncio.to_thread(os.read, reading, 100) == b""
    os.close(reading)


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """That is told at once, and nothing stays open."""
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Child(["/nonexistent"], cwd=str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == files
