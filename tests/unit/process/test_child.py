"""xenbusd.process.child: starts, watches and kills a program, and keeps the end of its output."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from xenbusd.process import child as module
from xenbusd.process.child import NOT_FOR_CHILDREN, OUTPUT_MAX, Child, child_environ

PATIENCE_S = 20.0
"""More than any program here needs."""


async def test_end_and_output(tmp_path: Path) -> None:
    """The exit status and the output of both streams are known once it has ended; it runs in its folder, with the
    descriptors that it inherits."""
    reading, writing = os.pipe()
    script = f"pwd; echo second >&2; echo inherited >/proc/self/fd/{writing}; exit 3"
    child = Child(["sh", "-c", script], cwd=str(tmp_path), pass_fds=[writing])
    assert child.status is None
    assert await child.finish(PATIENCE_S)
    assert (child.status, child.last_words) == (3, f"{tmp_path}\nsecond")
    assert os.read(reading, 100) == b"inherited\n"
    assert await child.finish(PATIENCE_S)
    os.close(reading)
    os.close(writing)


async def test_standard_output_may_be_discarded() -> None:
    """A server's standard output is of no use; its complaints are."""
    child = Child(["sh", "-c", "echo out; echo err >&2"], keep_stdout=False)
    await child.finish(PATIENCE_S)
    assert child.last_words == "err"


async def test_standard_output_may_go_elsewhere() -> None:
    """Into a file of the caller's, whole; complaints are kept as ever."""
    with os.fdopen(os.memfd_create("output"), "r+b") as file:
        child = Child(["sh", "-c", "head -c 100000 /dev/zero; echo err >&2"], stdout=file.fileno())
        assert await child.finish(PATIENCE_S)
        file.seek(0)
        assert file.read() == bytes(100000)
    assert child.last_words == "err"


async def test_standard_input_is_empty() -> None:
    """A program that reads its input finds the end of it at once."""
    child = Child(["cat"])
    assert await child.finish(PATIENCE_S)
    assert (child.status, child.last_words) == (0, "")


async def test_only_the_end_of_much_output_is_kept() -> None:
    """A program that prints a megabyte is neither held up nor kept in memory."""
    child = Child(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end"])
    assert await child.finish(PATIENCE_S)
    assert child.status == 0
    assert len(child.last_words) == OUTPUT_MAX - 1
    assert child.last_words.endswith("xx\nend")
    assert child.last_lines == "end"


async def test_output_that_is_not_utf8() -> None:
    """Bytes that are not UTF-8 are shown escaped; whole lines are all kept."""
    child = Child(["printf", "\\377bad\\nline\\n"])
    await child.finish(PATIENCE_S)
    assert child.last_words == child.last_lines == "\\xffbad\nline"


async def test_a_program_that_closes_its_output() -> None:
    """The end of its output is not its own end."""
    child = Child(["sh", "-c", "echo last words; exec >/dev/null 2>&1; exec sleep 1000"])
    assert not await child.ended_within(0.01)
    assert child.status is None
    await child.kill()
    assert child.status == -signal.SIGKILL


async def test_killed_when_time_is_up() -> None:
    """A program that does not end in time is killed, and `finish` says so."""
    child = Child(["sleep", "1000"])
    assert not await child.finish(0.01)
    assert child.status == -signal.SIGKILL
    assert child.ended.is_set()
    await child.kill()


async def test_killed_with_its_children() -> None:
    """What the program has started is killed with it: nothing holds the pipe's writing end any more."""
    reading, writing = os.pipe()
    child = Child(["sh", "-c", f"sleep 1000 & echo started >/proc/self/fd/{writing}; wait"], pass_fds=[writing])
    os.close(writing)
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.to_thread(os.read, reading, 100) == b"started\n"
        assert not await child.finish(0.0)
        assert await asyncio.to_thread(os.read, reading, 100) == b""
    os.close(reading)


async def test_cancellation_kills() -> None:
    """If waiting for its end is cancelled, it has ended before the cancellation continues."""
    child = Child(["sleep", "1000"])
    waiting = asyncio.create_task(child.finish(PATIENCE_S))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert child.status == -signal.SIGKILL


async def test_signals() -> None:
    """A signal reaches the program; one after its end reaches nobody."""
    child = Child(["sleep", "1000"])
    child.send_signal(signal.SIGTERM)
    assert await child.finish(PATIENCE_S)
    assert child.status == -signal.SIGTERM
    child.send_signal(signal.SIGTERM)


async def test_it_leads_a_process_group_and_a_session() -> None:
    """Ctrl-C at our terminal does not reach it."""
    child = Child(["sleep", "1000"])
    assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid
    await child.kill()


async def test_umask(tmp_path: Path) -> None:
    """Files that it makes get the mode that is asked for."""
    child = Child(["touch", "made"], cwd=str(tmp_path), umask=0o077)
    await child.finish(PATIENCE_S)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600


async def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets ours without what systemd addresses to us alone, or else exactly what it is given."""
    for name in NOT_FOR_CHILDREN:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LOCAL_SETTING", "yes")
    assert child_environ()["LOCAL_SETTING"] == "yes"
    shown = " ".join(f"${name}" for name in NOT_FOR_CHILDREN)
    inherits = Child(["sh", "-c", f"echo $LOCAL_SETTING {shown}"])
    given = Child(["env"], env={"PATH": os.environ["PATH"], "ONLY": "this"})
    await inherits.finish(PATIENCE_S)
    await given.finish(PATIENCE_S)
    assert inherits.last_words == "yes"
    assert set(given.last_words.splitlines()) == {f"PATH={os.environ['PATH']}", "ONLY=this"}


async def test_a_program_that_does_not_exist() -> None:
    """The error comes at once, and no descriptor stays open."""
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Child(["/nonexistent"])
    assert len(os.listdir("/proc/self/fd")) == files


async def test_no_descriptor_is_left() -> None:
    """A program that has ended costs nothing; one that cannot be watched is not left running."""
    files = len(os.listdir("/proc/self/fd"))
    await Child(["true"]).finish(PATIENCE_S)
    assert len(os.listdir("/proc/self/fd")) == files


async def test_a_child_that_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for its pidfd it is killed at once, and the caller gets the error."""

    def refuse(pid: int) -> int:
        seen.append(pid)
        raise OSError(24, "Too many open files")

    seen: list[int] = []
    monkeypatch.setattr(module.os, "pidfd_open", refuse)
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Too many open files"):
        Child(["sleep", "1000"])
    assert not os.path.exists(f"/proc/{seen[0]}")
    assert len(os.listdir("/proc/self/fd")) == files
